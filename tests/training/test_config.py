"""Recipes: what is read, and what is refused with which words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.training.runs import SECTIONS, sections

from anyorder.core import lookup
from anyorder.core.errors import UserError
from anyorder.training.config import Recipe, build_recipe, difference, read_recipe

TEXT = """
[model]
width = 64
layers = 2
heads = 4
[data]
sources = ["a.txt", {path = "b.jsonl", text = "body"}]
length = 128
vocabulary = 1000
[objective]
name = "next_token"
label_smoothing = 0.1
[optimizer]
learning_rate = 1e-3
[run]
steps = 10
batch_size = 8
"""


def recipe(**changes: dict[str, Any]) -> Recipe:
    return build_recipe(sections(changes))


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "prose.toml"
    path.write_text(TEXT)
    found = read_recipe(path)
    assert found.model.width == 64 and found.data.length == 128
    first, second = found.data.sources
    assert (first.path, first.format) == ("a.txt", "text")
    assert (second.path, second.format, second.text) == ("b.jsonl", "jsonl", "body")
    assert found.objective.label_smoothing == 0.1  # type: ignore[attr-defined]
    assert found.schedule.name == "cosine" and found.run.output == "runs/prose"
    assert found.path("a.txt") == tmp_path / "a.txt"


def test_it_extends_another(tmp_path: Path) -> None:
    (tmp_path / "prose.toml").write_text(TEXT)
    (tmp_path / "deeper.toml").write_text('extends = "prose.toml"\n[model]\nlayers = 8\n')
    last = tmp_path / "last.toml"
    last.write_text('extends = "deeper.toml"\n[schedule]\nname = "wsd"\n[run]\nsteps = 20\n')
    found = read_recipe(last)
    assert (found.model.layers, found.model.width) == (8, 64)  # type: ignore[attr-defined]
    assert (found.run.steps, found.run.batch_size, found.run.output) == (20, 8, "runs/last")
    assert found.schedule.name == "wsd" and len(found.data.sources) == 2
    last.write_text('extends = "prose.toml"\n[objective]\nname = "masked_diffusion"\n')
    assert lookup.name_of(read_recipe(last).objective) == "masked_diffusion"
    last.write_text('extends = "prose.toml"\n[objective]\nlabel_smoothing = 0.2\n')
    assert read_recipe(last).objective.label_smoothing == 0.2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('extends = "own.toml"', "own.toml extends itself"),
        ('extends = "none.toml"', "cannot read the recipe .*none.toml"),
        ("extends = 3", "own.toml: extends must be the path of a recipe, got 3"),
        ('extends = "prose.toml"\nmodel = 1', r"\[model\] must be a section of fields, got 1"),
        ('extends = "prose.toml"\n[run]\nstep = 1', r"did you mean 'steps'\?"),
        ('extend = "prose.toml"', r"unknown recipe section 'extend'; did you mean 'extends'\?"),
    ],
)
def test_it_extends_nothing_else(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "prose.toml").write_text(TEXT)
    path = tmp_path / "own.toml"
    path.write_text(line)
    with pytest.raises(UserError, match=words):
        read_recipe(path)


MIXED: dict[str, Any] = {
    "name": "mixture",
    "parts": ["next_token", {"name": "block_diffusion", "block_size": 2, "clean": "causal"}],
    "shares": [1, 3],
}
"""Of an objective of several parts."""

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("model", {"widht": 8}, r"unknown \[model\] field 'widht'; did you mean 'width'\?"),
    ("run", {"batchsize": 8}, r"did you mean 'batch_size'\?"),
    ("objective", {"label_smothing": 0.1}, r"did you mean 'label_smoothing'\?"),
    ("objective", {"name": "next_tokens"}, r"did you mean 'next_token'\?"),
    ("objective", {"name": "mixture"}, r"mixture option parts is missing; .* a list of adversar"),
    ("objective", {**MIXED, "parts": ["next_token"]}, r"at least 2 parts, got 1"),
    ("objective", {**MIXED, "parts": ["next_token", "maskd_diffusion"]}, r"mean 'masked_diff"),
    (
        "objective",
        {**MIXED, "parts": ["next_token", {"schedule": "linear"}]},
        r"parts must be a li",
    ),
    ("objective", {**MIXED, "parts": "next_token"}, r"parts must be a list of .* got 'next_token'"),
    ("objective", {**MIXED, "shares": [1]}, r"shares has 1 numbers for 2 parts"),
    ("objective", {**MIXED, "shares": [1, -1]}, r"numbers of at least 0, not .*got \[1, -1\]"),
    (
        "objective",
        {"name": "block_diffusion", "next_token": 1.0},
        r'clean = "causal", or leave next_',
    ),
    ("model", {"width": 0}, r"\[model\] width must be an integer of at least 8.* got 0"),
    ("model", {"width": 18}, r"even multiple of heads, got 18 and 2; try width = 16"),
    ("model", {"kv_heads": 3}, r"heads must be a multiple of kv_heads, got 2 and 3"),
    ("model", {"init": "x"}, r"has init and width"),
    ("data", {"sources": "text.txt"}, r"sources must be a list of files or tables.*'text.txt'"),
    ("data", {"sources": []}, r"sources must be a list of files"),
    ("data", {"sources": [3]}, r"sources holds 3; a path or a table is needed"),
    ("data", {"sources": [{"pth": "a"}]}, r"source field 'pth'; did you mean 'path'\?"),
    ("data", {"length": 33}, r"length is 33, but the model's context is 32"),
    ("data", {"validation": 0.9}, r"validation must be a number from 0.0 to 0.5, got 0.9"),
    ("data", {"tokenizer": "x"}, r"has tokenizer and vocabulary"),
    ("data", {"add_tokens": True}, r"has add_tokens and vocabulary"),
    ("optimizer", {"name": "adam"}, r"must be one of adamw, muon, got 'adam'"),
    ("optimizer", {"learning_rate": float("nan")}, r"learning_rate must be a number from"),
    ("schedule", {"name": "noam", "warmup": 0}, r"noam needs warmup of at least 1 step"),
    ("run", {"steps": 1.5}, r"\[run\] steps must be an integer of at least 1, got 1.5"),
    ("run", {"accumulation": 3}, r"batch_size must be a multiple of accumulation, got 4 and 3"),
    ("run", {"dtype": "float16"}, r"must be one of float32, bfloat16"),
]


@pytest.mark.parametrize(("section", "fields", "message"), REFUSED)
def test_refused(section: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe(**{section: fields})


@pytest.mark.parametrize(
    ("section", "field"),
    [("model", "width"), ("data", "length"), ("objective", "name"), ("run", "steps")],
)
def test_what_is_missing_is_named(section: str, field: str) -> None:
    fields = {name: value for name, value in SECTIONS[section].items() if name != field}
    with pytest.raises(UserError, match=rf"\[{section}\] lacks {field}"):
        build_recipe({**SECTIONS, section: fields})


def test_unknown_sections_and_a_tokenizer_from_nowhere() -> None:
    with pytest.raises(UserError, match=r"recipe section 'optimiser'; did you mean 'optimizer'\?"):
        build_recipe({**SECTIONS, "optimiser": {}})
    with pytest.raises(UserError, match=r"\[run\] must be a section of fields, got 3"):
        build_recipe({**SECTIONS, "run": 3})
    with pytest.raises(UserError, match=r"\[data\] lacks a tokenizer"):
        recipe(data={"vocabulary": None})


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read the recipe"), (b"\xff", "not UTF-8"), (b"[model", "not valid TOML")],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "r.toml").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_recipe(tmp_path / "r.toml")


def test_difference_names_the_field_and_overlooks_what_changes_no_weight() -> None:
    ours = recipe().fields()
    assert difference(ours, recipe(run={"checkpoint_every": 1, "output": "x"}).fields()) is None
    other = recipe(optimizer={"learning_rate": 0.5}).fields()
    found = difference(ours, other)
    assert found == "[optimizer] learning_rate is 0.01, and was 0.5 in the checkpoint"
    found = difference(ours, recipe(objective={"label_smoothing": 0.1}).fields())
    assert found is not None and "label_smoothing" in found


def test_the_fields_of_a_recipe_make_it_again() -> None:
    for objective in ({"label_smoothing": 0.25}, MIXED):
        made = recipe(objective=objective, run={"ema": 0.9})
        assert build_recipe(made.fields()) == made


def test_reading_a_recipe_without_an_objective_does_not_import_torch() -> None:
    code = "import sys, anyorder.training.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
