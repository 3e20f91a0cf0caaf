"""A model that writes token by token learns to write in other ways too, and keeps its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import run_out
from tests.training.runs import memory_data, sections

import anyorder
from anyorder.core.errors import UserError
from anyorder.core.plans import TAGS
from anyorder.model.loaded import load
from anyorder.model.tokenizer import Tokenizer
from anyorder.training.config import Recipe, build_recipe
from anyorder.training.setup import make_trainee
from anyorder.training.sources import open_data
from anyorder.training.trainer import Trainer

MANY = {
    "name": "mixture",
    "parts": [
        {"name": "block_diffusion", "block_size": 4, "clean": "causal", "next_token": 1.0},
        "masked_diffusion",
        "planned_diffusion",
    ],
}
MODES: list[dict[str, Any]] = [
    {"method": "autoregressive"},
    {"method": "block_diffusion"},
    {"method": "masked_diffusion"},
    {"method": "planned_diffusion"},
    {"method": "speculative", "options": {"drafter": "own_block"}},
]


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A small causal model whose tokenizer has an end token and nothing else."""
    data = memory_data(tmp_path)
    config = data.tokenizer_folder / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    tokenizer = json.loads((data.tokenizer_folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"].pop()  # the mask
    (data.tokenizer_folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    run = {"steps": 1, "output": str(tmp_path / "origin")}
    return Trainer(build_recipe(sections({"run": run})), data=data).run()


def conversion(folder: Path, origin: Path, **changes: Any) -> Recipe:
    text = "It is a truth.\n\n" + "".join(f"Of part {n} this says a little.\n\n" for n in range(9))
    (folder / "text.txt").write_text(text)
    given: dict[str, Any] = {
        "data": {
            "sources": [{"path": str(folder / "text.txt"), "plan": "rules"}],
            "vocabulary": None,
            "add_tokens": True,
            "length": 32,
            "validation": 0.0,
            **changes,
        },
        "objective": MANY,
        "run": {"steps": 4, "validate_every": 9, "output": str(folder / "out")},
    }
    found = sections(given)
    return build_recipe({**found, "model": {"init": str(origin)}})


def run(recipe: Recipe, folder: Path) -> Path:
    return Trainer(recipe, data=open_data(recipe, folder / "out", resumed=False)).run()


def test_one_checkpoint_writes_in_every_mode(tmp_path: Path, origin: Path) -> None:
    folder = run(conversion(tmp_path, origin), tmp_path)
    loaded = load(str(folder), dtype="float32")
    abilities = loaded.abilities
    assert abilities.attention == {"causal", "bidirectional"}
    assert (abilities.block_size, abilities.clean_text) == (4, "causal")
    assert abilities.whole_canvas
    assert abilities.mask_token is not None and abilities.plan_tokens is not None
    engine = anyorder.Engine(folder, dtype="float32", cache_tokens=4096)
    prompt = engine.tokenizer.encode("It is a truth")
    fields: dict[str, Any] = {"prompt": prompt, "max_new_tokens": 9, "ignore_end": True}
    handles = engine.submit_all([anyorder.Request(**fields, **mode) for mode in MODES])
    run_out(engine)
    found = [handle.result() for handle in handles]
    assert [len(completion.tokens) for completion in found] == [9] * len(MODES)
    assert found[-1].tokens == found[0].tokens
    assert not any("trained on blocks" in note for one in found for note in one.report.notes)
    for mode, completion in zip(MODES, found, strict=True):
        assert engine.generate(anyorder.Request(**fields, **mode)).tokens == completion.tokens


def test_new_tokens_are_as_likely_as_tokens_are_on_average(tmp_path: Path, origin: Path) -> None:
    recipe = conversion(tmp_path, origin)
    data = open_data(recipe, tmp_path / "out", resumed=False)
    before = load(str(origin), dtype="float32")
    after = make_trainee(recipe, data, torch.device("cpu"))
    old, new = Tokenizer.from_folder(origin), Tokenizer.from_folder(data.tokenizer_folder)
    names = ("<|mask|>", *TAGS)
    ids = [new.encode(name, parse_special=True)[0] for name in names]
    assert ids == list(range(old.vocabulary_size, old.vocabulary_size + len(names)))
    assert new.mask_token == ids[0] and old.mask_token is None
    rows = dict(before.network.named_parameters())["embedding.weight"]  # type: ignore[attr-defined]
    grown = dict(after.network.named_parameters())["embedding.weight"]
    assert torch.equal(grown[: len(rows)], rows)
    assert torch.allclose(grown[len(rows) :], rows.mean(0).expand(len(names), -1))


def test_without_being_told_no_token_is_added(tmp_path: Path, origin: Path) -> None:
    plain: dict[str, Any] = {"add_tokens": False}
    with pytest.raises(UserError, match=r"lacks some; .* add_tokens = true adds them"):
        run(conversion(tmp_path, origin, **plain), tmp_path)
    plain["sources"] = [{"path": str(tmp_path / "text.txt"), "format": "text"}]
    with pytest.raises(UserError, match=r"needs a mask token; .* add_tokens = true"):
        run(conversion(tmp_path, origin, **plain), tmp_path)


def test_parts_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    data = memory_data(tmp_path)
    parts = [{"name": "block_diffusion", "block_size": size} for size in (2, 4)]
    given = {
        "objective": {"name": "mixture", "parts": parts},
        "run": {"output": str(tmp_path / "out")},
    }
    with pytest.raises(UserError, match="different block size of the model: 2, 4; give them the"):
        Trainer(build_recipe(sections(given)), data=data)
