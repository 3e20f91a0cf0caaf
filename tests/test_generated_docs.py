"""docs/methods.md says what the source says, and a stale page is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts.generate_docs import PAGE, main, page

import anyorder
from anyorder.methods import autoregressive


def test_the_page_is_current() -> None:
    assert PAGE.read_text("utf-8") == page()
    assert main(["--check"]) == 0


def test_every_method_and_option_is_on_the_page() -> None:
    for method in anyorder.methods():
        assert f"## {method.name}\n" in page()
        for option in method.options:
            assert f"| `{option.name}` | {option.allowed} |" in page()


def test_a_stale_page_is_noticed_and_renewed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "docs" / "methods.md"
    assert main(["--check"], copy) == 1
    assert main([], copy) == 0
    assert main(["--check"], copy) == 0
    copy.write_text(copy.read_text("utf-8").replace("left to right", "right to left", 1), "utf-8")
    capsys.readouterr()
    assert main(["--check"], copy) == 1
    told = capsys.readouterr().err
    assert "right to left" in told and "make docs" in told


def test_an_edited_method_makes_the_page_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoregressive, "__doc__", "Something else.")
    assert main(["--check"]) == 1
