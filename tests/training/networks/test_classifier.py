"""Classifiers trained by recipes: labelled documents from files, both runs, other backbones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.runs import byte_tokenizer, memory_data, small_recipe

from anyorder.core.errors import UserError
from anyorder.model.classifier import Classifier, load_classifier
from anyorder.model.tokenizer import Tokenizer
from anyorder.training.config import build_recipe
from anyorder.training.metrics import read_metrics
from anyorder.training.trainer import Trainer

LABELS = ["apple", "pear", "quince"]
SIZES = {"width": 16, "layers": 2, "heads": 2, "narrow": 8, "context": 64}


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """Texts of a letter of their own, each with its label."""
    rows = [
        {"body": "xyz"[number % 3] * (1 + number % 5), "kind": LABELS[number % 3]}
        for number in range(60)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def train(output: Path, documents: Path, model: dict[str, Any], **run: Any) -> Path:
    sections = {
        "model": {"kind": "classifier", **model},
        "data": {
            "sources": [{"path": str(documents), "prompt": "body", "text": "kind"}],
            "length": 32,
            "validation": 0.0,
            "tokenizer": str(byte_tokenizer(documents.parent / "bytes")),
        },
        "objective": {"name": "fastbert"},
        "optimizer": {"learning_rate": 0.01},
        "run": {"steps": 30, "batch_size": 4, **run, "output": str(output)},
    }
    return Trainer(build_recipe(sections)).run()


def test_both_runs_on_files(tmp_path: Path, documents: Path) -> None:
    first = train(tmp_path / "first", documents, {**SIZES, "labels": LABELS})
    network = load_classifier(first)
    tokenizer = Tokenizer.from_folder(first)
    assert network.labels == {name: tokenizer.encode(name, add_special=False)[0] for name in LABELS}
    texts = [tokenizer.encode(text, add_special=False) for text in ("xx\n", "y\n", "zzzz\n")]
    assert [v.label for v in network.classify(texts, threshold=0.5)] == LABELS
    second = train(tmp_path / "second", documents, {"init": str(first), "exits": True}, steps=40)
    weights = dict(network.named_parameters())
    both = load_classifier(second)
    for name, parameter in both.named_parameters():
        if not name.startswith(("branches", "scores")):
            assert torch.equal(parameter, weights[name]), name
    verdicts = both.classify(texts, threshold=0.8)
    assert [(v.label, v.num_layers) for v in verdicts] == [(name, 1) for name in LABELS]
    lines = read_metrics(tmp_path / "second" / "metrics.jsonl")
    assert lines[-1]["agreeing"] > 0.9 and lines[-1]["loss"] < 0.5 * lines[0]["loss"]


def test_a_decoder_may_be_the_backbone(tmp_path: Path, documents: Path) -> None:
    """Its layers are the classifier's first ones, and its head is left out."""
    untied = {"tied_embeddings": False, "context": 64}
    decoder = small_recipe(tmp_path / "decoder", model=untied, run={"steps": 1})
    run = Trainer(decoder, data=memory_data(tmp_path))
    folder = run.run()
    model = {"init": str(folder), "labels": LABELS, "narrow": 8}
    place = tmp_path / "classifier"
    sections = build_recipe(
        {
            "model": {"kind": "classifier", **model},
            "data": {"sources": [str(documents)], "length": 32},
            "objective": {"name": "fastbert"},
            "optimizer": {"learning_rate": 0.01},
            "run": {"steps": 1, "batch_size": 4, "output": str(place)},
        }
    )
    begun = Trainer(sections, data=memory_data(tmp_path))._passes.trainee.network
    assert isinstance(begun, Classifier) and not hasattr(begun, "head")
    ours, theirs = (dict(each.named_parameters()) for each in (begun, run._passes.trainee.network))
    shared = ours.keys() & theirs.keys()
    assert {name.partition(".")[0] for name in shared} == {"embedding", "layers", "final_norm"}
    assert all(torch.equal(ours[name], theirs[name]) for name in shared)
    assert theirs.keys() - shared == {"head.weight"}
    with pytest.raises(UserError, match="is no classifier, and exits learn from one"):
        train(tmp_path / "x", documents, {"init": str(folder), "exits": True})
