"""Runs on pairs, from a recipe to the folder of the finished model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.runs import byte_tokenizer

from anyorder.core.errors import InvalidRequest, UserError
from anyorder.core.objective import TrainingBatch
from anyorder.core.request import Request
from anyorder.engine.engine import Engine
from anyorder.model.encoder_decoder import EncoderDecoder
from anyorder.model.loaded import load
from anyorder.training.config import Recipe, build_recipe
from anyorder.training.documents import Document, PairEncoder
from anyorder.training.network import Trainee
from anyorder.training.objectives.encoder_decoder import EncoderDecoder as EncoderDecoderObjective
from anyorder.training.trainer import Trainer

SECTIONS: dict[str, dict[str, Any]] = {
    "model": {
        "kind": "encoder_decoder",
        "width": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "heads": 2,
    },
    "data": {"sources": ["pairs.tsv"], "length": 48, "source_length": 40, "tokenizer": "tokenizer"},
    "objective": {"name": "encoder_decoder"},
    "optimizer": {"learning_rate": 0.01},
    "schedule": {"warmup": 2},
    "run": {"steps": 6, "batch_size": 4, "checkpoint_every": 3, "validate_every": 3, "seed": 5},
}
KINDS: dict[str, dict[str, Any]] = {
    "encoder_decoder": {},
    "mask_predict": {"length_head": True},
    "dag": {"vertices_per_token": 3},
    "ctc": {"vertices_per_token": 3, "links": False},
    "insertion": {"edits": True},
}


def recipe(
    folder: Path,
    output: str = "out",
    sections: Mapping[str, Mapping[str, Any]] = SECTIONS,
    **changes: Mapping[str, Any],
) -> Recipe:
    """A small run on 80 pairs in `folder`."""
    pairs = "".join(f"source {n}\tZiel Nummer {n}\n" for n in range(80))
    (folder / "pairs.tsv").write_text(pairs)
    if not (folder / "tokenizer").exists():
        byte_tokenizer(folder / "tokenizer")
    merged = {name: {**fields, **changes.get(name, {})} for name, fields in sections.items()}
    merged["run"]["output"] = str(folder / output)
    return build_recipe(merged, folder=folder)


def of(name: str, **options: Any) -> dict[str, dict[str, Any]]:
    """What a recipe changes for an objective."""
    return {"model": KINDS[name], "objective": {"name": name, **options}}


class Killed(Exception):
    """Stands for a signal."""


@pytest.mark.parametrize("name", KINDS)
def test_a_run_goes_on_where_it_was_killed_and_ends_as_a_model(name: str, tmp_path: Path) -> None:
    changes = of(name)
    losses: list[float] = []
    whole = Trainer(recipe(tmp_path, **changes), watch=lambda line: losses.append(line.loss))
    folder = whole.run()
    assert losses[-1] < losses[0] and len(losses) == 6

    def kill(line: Any) -> None:
        if line.step == 5:
            raise Killed

    with pytest.raises(Killed):
        Trainer(recipe(tmp_path, "again", **changes), watch=kill).run()
    rest: list[float] = []
    resumed = Trainer(
        recipe(tmp_path, "again", **changes), watch=lambda line: rest.append(line.loss)
    )
    assert resumed.step == 3
    other = resumed.run()
    assert rest == losses[3:]

    networks = [load(str(path), dtype="float32").network for path in (folder, other)]
    first, second = (dict(network.named_parameters()) for network in networks)  # type: ignore[attr-defined]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    loaded = load(str(folder))
    assert isinstance(loaded.network, EncoderDecoder)
    assert loaded.abilities.source_length >= 40
    assert loaded.abilities.num_lengths == (49 if name == "mask_predict" else 0)
    assert loaded.abilities.vertices_per_token == KINDS[name].get("vertices_per_token", 0)
    assert loaded.abilities.num_links == (2 if name == "dag" else 0)
    assert loaded.abilities.num_insertions == (49 if name == "insertion" else 0)
    assert loaded.abilities.attention == {
        "causal" if name == "encoder_decoder" else "bidirectional"
    }
    if name == "dag":
        # A position for every vertex of the longest source.
        assert loaded.abilities.context_length == 3 * (48 + 2)
        hidden = torch.randn(1, 9, 16)
        assert loaded.network.links(hidden, torch.tensor([9])).isfinite().sum() == 36


def test_tests_are_left_out_of_training_and_validation(tmp_path: Path) -> None:
    shares = {"validation": 0.2, "test": 0.3}
    data = Trainer(recipe(tmp_path, data=shares))._data
    assert data.validation is not None
    sizes = [part.statistics.num_documents for part in (data.train, data.validation)]  # type: ignore[attr-defined]
    assert sum(sizes) < 70 and sizes[1] < 30
    everything = Trainer(recipe(tmp_path, "all", data={"validation": 0.2}))._data
    assert everything.train.statistics.num_documents > sizes[0] + 10  # type: ignore[attr-defined]


def test_a_checkpoint_says_where_its_decoder_s_texts_begin(tmp_path: Path) -> None:
    folder = Trainer(recipe(tmp_path)).run()
    config = folder / "config.json"
    text = config.read_text()
    assert '"decoder_start_token_id": 256' in text
    config.write_text(text.replace('"decoder_start_token_id": 256', '"decoder_start_token_id": 7'))
    sizes = dict.fromkeys(("width", "encoder_layers", "decoder_layers", "heads"))
    changes = {"model": {"init": str(folder), **sizes}, "data": {"tokenizer": None}}
    batch = Trainer(recipe(tmp_path, "tuned", **changes))._data.train.batch(0, batch_size=4)
    starts = batch.tokens_BT[(batch.documents_BT >= 0) & ~batch.targets_BT]
    assert (starts == 7).all() and len(starts) > 4


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    short = {"path": "pairs.tsv", "on_error": "skip"}
    data = {"sources": [short], "source_length": 8, "validation": 0.0}
    trainer = Trainer(recipe(tmp_path, data=data))
    (line,) = trainer.left_out
    assert "pairs.tsv: 70 left out, the first: " in line and "too long for [data]" in line
    assert Trainer(recipe(tmp_path, "all")).left_out == ()


# -------------------------------------------------------------------------------------- refusals
def test_objectives_and_networks_that_do_not_fit(tmp_path: Path) -> None:
    decoder = {"kind": "decoder", "width": 16, "layers": 1, "heads": 2}
    with pytest.raises(UserError, match=r'has no encoder .* kind = "encoder_decoder"'):
        Trainer(recipe(tmp_path, sections={**SECTIONS, "model": decoder}))
    with pytest.raises(UserError, match="NextToken has no use for sources"):
        Trainer(recipe(tmp_path, objective={"name": "next_token"}, data={"source_length": None}))
    with pytest.raises(InvalidRequest, match="next_token does not learn from pairs; leave it out"):
        recipe(tmp_path, objective={"name": "next_token"})
    with pytest.raises(UserError, match="has no length head"):
        Trainer(recipe(tmp_path, objective={"name": "mask_predict"}))
    with pytest.raises(UserError, match=r"has none; give \[model\] edits = true"):
        Trainer(recipe(tmp_path, objective={"name": "insertion"}))
    with pytest.raises(UserError, match=r"give \[model\] vertices_per_token"):
        Trainer(recipe(tmp_path, objective={"name": "dag"}))


def test_lengths_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"source_length is 60, but .* sources of up to 50 tokens"):
        Trainer(recipe(tmp_path, model={"context": 50}, data={"source_length": 60}))
    changes = {"model": {**KINDS["dag"], "context": 60}, "objective": {"name": "dag"}}
    with pytest.raises(UserError, match=r"source_length is 40, but .* sources of up to 18 tokens"):
        Trainer(recipe(tmp_path, **changes))
    with pytest.raises(UserError, match="pairs are too long for"):
        Trainer(recipe(tmp_path, data={"source_length": 8}))


def test_a_text_file_holds_no_pairs(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text\n")
    with pytest.raises(UserError, match=r"is read as text and holds no pairs"):
        Trainer(recipe(tmp_path, data={"sources": ["text.txt"]}))


def test_training_and_inference_agree_on_a_pair(tmp_path: Path) -> None:
    """Frames, start token and masks are the same: a translation costs what the engine says."""
    folder = Trainer(recipe(tmp_path)).run()
    engine = Engine(str(folder), dtype="float32")
    out = engine.generate("source 3", max_new_tokens=9, temperature=1.0, seed=1)
    assert engine.tokenizer is not None and len(out.tokens) > 3
    encoder = PairEncoder.of(engine.tokenizer)
    source, framed = encoder.encode(Document(prompt="source 3", text="x"))
    tokens = torch.tensor([[framed[0], *out.tokens]])
    batch = TrainingBatch(
        tokens_BT=tokens,
        documents_BT=torch.zeros_like(tokens),
        targets_BT=torch.ones_like(tokens, dtype=torch.bool),
        sources_BS=torch.tensor([source]),
        source_documents_BS=torch.zeros(1, len(source), dtype=torch.int64),
    )
    loaded = load(str(folder), dtype="float32")
    model = Trainee(network=loaded.network, abilities=loaded.abilities)  # type: ignore[arg-type]
    found = EncoderDecoderObjective(label_smoothing=0.3).loss(model, batch, torch.Generator())
    assert found.metrics["nats"] == pytest.approx(-sum(out.logprobs), rel=1e-4)


NUMBERS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf"}
METHODS: list[tuple[str, str, int, dict[str, object], dict[str, object]]] = [
    ("encoder_decoder", "autoregressive", 80, {}, {}),
    ("mask_predict", "mask_predict", 80, {}, {"iterations": 4}),
    ("dag", "dag", 80, {"glancing": True}, {}),
    ("dag", "dag", 80, {}, {"path": "viterbi"}),
    ("ctc", "ctc", 200, {}, {}),
    ("insertion", "insertion", 400, {}, {}),
]


@pytest.mark.parametrize(("name", "method", "steps", "options", "decoding"), METHODS)
def test_what_was_learnt_by_heart_is_what_is_decoded(
    name: str,
    method: str,
    steps: int,
    options: dict[str, object],
    decoding: dict[str, object],
    tmp_path: Path,
) -> None:
    changes = of(name, **options)
    changes["model"] = {**changes["model"], "width": 32}
    changes["run"] = {"steps": steps, "batch_size": 1, "checkpoint_every": steps}
    made = recipe(tmp_path, data={"validation": 0.0}, **changes)
    pairs = "".join(f"{source}\t{target}\n" for source, target in NUMBERS.items())
    (tmp_path / "pairs.tsv").write_text(pairs, encoding="utf-8")
    engine = Engine(Trainer(made).run())
    requests = [Request(prompt=text, method=method, options=decoding) for text in NUMBERS]
    found = engine.generate(requests)
    assert [completion.text for completion in found] == list(NUMBERS.values())
    assert {completion.finish_reason for completion in found} == {"stop"}
