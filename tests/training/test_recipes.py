"""The recipes that come with the project: all can be read, and (slow) all learn from real text."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from anyorder.cli.main import main
from anyorder.core import lookup
from anyorder.training.config import build_recipe, read_recipe
from anyorder.training.metrics import StepMetrics, read_metrics
from anyorder.training.trainer import Trainer

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
EXTENDING = re.compile("^extends =", re.MULTILINE)
"""Recipes that say what differs from another, most of them for a GPU; the others are tried here."""
STEPS = 30
ROWS = 8
"""Of a batch, at most; an average over a few steps is enough to tell whether a loss falls."""


def needed(path: Path) -> list[str]:
    """The runs that a recipe goes on from."""
    return re.findall(r'"\.\./runs/(\w+)/model"', path.read_text())


def in_order() -> list[Path]:
    """What others go on from comes before them."""
    found: list[Path] = []

    def add(path: Path) -> None:
        for name in needed(path):
            add(path.with_name(f"{name}.toml"))
        if path not in found:
            found.append(path)

    for path in RECIPES:
        if not EXTENDING.search(path.read_text()):
            add(path)
    return found


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_can_be_read_and_says_how_to_run_it(path: Path) -> None:
    read_recipe(path)
    comment = re.split(r"^(?!#)", path.read_text(), maxsplit=1, flags=re.MULTILINE)[0]
    assert f"anyorder train recipes/{path.name}" in re.sub(r"\s*\n#\s*", " ", comment)
    assert all(path.with_name(f"{name}.toml") in RECIPES for name in needed(path))


def test_every_objective_has_one() -> None:
    named = {lookup.name_of(read_recipe(path).objective) for path in RECIPES}
    assert named == set(lookup.names("training/objectives"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has data/ and, as the recipes are gone through, runs/."""
    return tmp_path_factory.mktemp("recipes")


def more_of_the_same(path: Path) -> bool:
    """Does it go on with what another recipe learns? That is far slower than beginning; thirty
    steps do not tell it from the noise of masks and rows."""
    learnt = type(read_recipe(path).objective)
    before = [read_recipe(path.with_name(f"{name}.toml")) for name in needed(path)]
    return any(type(recipe.objective) is learnt for recipe in before)


def make_data(folder: Path, text: str) -> None:
    """A little of what a recipe wants written by a model."""
    pairs = str(RECIPES[0].with_name("en_de_autoregressive.toml"))
    lists = ["--prompts", "builtin:lists", "--max-new-tokens", "64", "--temperature"]
    translator = ["-m", "en-de-autoregressive", "--pairs", pairs, "--temperature", "0"]
    wanted = {
        "smollm2_answers/lists.jsonl": [*lists, "0", "--num", "24"],
        "smollm2_drawn/lists.jsonl": [*lists, "0.7", "--num", "24"],
        "smollm2_structured/lists.jsonl": [*lists, "0", "--num", "48"],
        # By the one that comes along: what has had thirty steps says nothing worth learning.
        "en_de_distilled.jsonl": [*translator, "--num", "200"],
    }
    for name, flags in wanted.items():
        path = folder / "data" / name
        if f"../data/{name.partition('/')[0]}" in text and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = [*flags, "--dtype", "bfloat16"]
            assert main(["data", "synthesize", str(path), *flags]) == 0


def corpora(sections: dict[str, Any]) -> list[str]:
    return [s["corpus"] for s in sections["data"]["sources"] if "corpus" in s]


def test_few_recipes_are_more_of_the_same() -> None:
    assert [path.stem for path in in_order() if more_of_the_same(path)] == [
        "austen_twin_masked_diffusion_annealed",
        "en_de_dag_distilled",
        "en_de_mask_predict_distilled",
        "wordnet_early_exit",
    ]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("path", in_order(), ids=lambda path: path.stem)
def test_its_loss_falls_on_real_text(path: Path, folder: Path) -> None:
    """Its first steps, on fewer rows; in the order in which the recipes need each other."""
    make_data(folder, path.read_text())
    sections = tomllib.loads(path.read_text())
    for corpus in corpora(sections):
        assert main(["data", "pull", corpus]) == 0
    if "vocabulary" in sections["data"] and not corpora(sections):
        sections["data"]["vocabulary"] = 1024  # all that so little text gives
    run = sections["run"]
    run["batch_size"] = min(ROWS, run["batch_size"])
    run |= {"steps": STEPS, "accumulation": 1, "validate_every": STEPS, "validation_batches": 1}
    run |= {"output": str(folder / "runs" / path.stem)}
    sections["schedule"] = {"warmup": 5}
    (folder / "recipes").mkdir(exist_ok=True)
    recipe = build_recipe(sections, folder=folder / "recipes")
    lines: list[StepMetrics] = []
    model = Trainer(recipe, watch=lines.append).run()
    assert list(model.glob("*.safetensors"))
    losses = [line.loss for line in lines]
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    if more_of_the_same(path):
        (before,) = needed(path)
        began = read_metrics(folder / "runs" / before / "metrics.jsonl")[:5]
        assert last < 1.1 * first, f"{first:.3f} at first, {last:.3f}: what was learnt is lost"
        first = sum(line["loss"] for line in began) / 5
    assert last < first, f"{first:.3f} at first, {last:.3f} after {STEPS} steps"
