"""The method that CONTRIBUTING.md shows works as it stands, and keeps the rules."""

from __future__ import annotations

import ast
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import anyorder.methods
from anyorder.core import lookup
from anyorder.core.errors import InvalidRequest
from anyorder.core.request import Guide, Request
from tests.architecture_rules import LAYERS, PACKAGE, ROOT, docstrings, layers, lengths, one_class
from tests.tiny import assert_no_page_is_lost, tiny_engine, tiny_model

TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
PATH, SOURCE = re.findall(r"`src/anyorder/(methods/\w+\.py)`, complete:\n\n```python\n(.*?)```",
                          TEXT, re.DOTALL)[0]  # fmt: skip
NAME = Path(PATH).stem


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A copy of the methods' folder, with the example in it."""
    folder = tmp_path / "methods"
    shutil.copytree(PACKAGE / "methods", folder)
    (folder / f"{NAME}.py").write_text(SOURCE, "utf-8")
    monkeypatch.setattr(lookup, "ROOT", tmp_path)
    monkeypatch.setattr(anyorder.methods, "__path__", [*anyorder.methods.__path__, str(folder)])
    yield
    sys.modules.pop(f"anyorder.methods.{NAME}", None)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("controls", [{}, {"temperature": 0.7, "seed": 3, "top_p": 0.9}])
def test_the_example_gives_what_autoregressive_gives(controls: dict[str, float]) -> None:
    engine = tiny_engine(model=tiny_model(ends=False))
    prompts = [[5, 6, 7, 8] * 5, [9], [1, 2, 3]]
    plain, guessed = (
        engine.generate(
            [Request(prompt=p, method=method, max_new_tokens=60, **controls) for p in prompts]  # type: ignore[arg-type]
        )
        for method in ("autoregressive", NAME)
    )
    assert [c.tokens for c in guessed] == [c.tokens for c in plain]
    if not controls:  # greedy texts of a tiny model go round in circles
        assert guessed[0].report.tokens_per_pass > plain[0].report.tokens_per_pass
    assert_no_page_is_lost(engine)


@pytest.mark.usefixtures("installed")
def test_the_examples_refusals() -> None:
    engine = tiny_engine()
    with pytest.raises(InvalidRequest, match="guesses must be an integer from 1 to 64, got 65"):
        engine.generate([1], method=NAME, options={"guesses": 65})
    with pytest.raises(InvalidRequest, match="guide"):
        lookup.find("methods", NAME, kind="method")().check(
            Request(prompt="x", guide=Guide.regex("a"))
        )


def test_the_example_keeps_the_rules() -> None:
    for rule in (layers, lengths, one_class, docstrings):
        assert not list(rule(PATH, SOURCE))
    assert max(map(len, SOURCE.splitlines())) <= 100
    assert ast.unparse(ast.parse(SOURCE))


def test_every_layer_is_in_the_table() -> None:
    table = TEXT.split("## Layers")[1].split("##")[0]
    named = set(re.findall(r"[\w/]+", " ".join(re.findall(r"^\| ([\w/, ]+) \|", table, re.M))))
    assert named - {"folder", "training/objectives"} == set(LAYERS) - {"", "training/objectives"}
