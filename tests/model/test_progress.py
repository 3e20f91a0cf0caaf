"""Progress bars: none for what is quick, one while something lasts, none left behind."""

from __future__ import annotations

import io

import pytest

from anyorder.model import progress
from anyorder.model.progress import TerminalProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def use_terminal(monkeypatch):
    """Call it inside the test: capturing replaces stderr between set-up and test."""

    def use() -> Terminal:
        screen = Terminal()
        monkeypatch.setattr("sys.stderr", screen)
        monkeypatch.setenv("TERM", "xterm")
        return screen

    return use


def test_quick_stages_show_nothing(use_terminal):
    terminal = use_terminal()
    bars = TerminalProgress()
    bars("loading", 0, 10)
    bars("loading", 10, 10)
    bars.close()
    assert terminal.getvalue() == ""


def test_slow_stages_show_and_vanish(use_terminal, monkeypatch):
    terminal = use_terminal()
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bars = TerminalProgress()
    bars("downloading", 0, 10_000_000)
    now[0] = 1.0
    bars("downloading", 1_000_000, 10_000_000)
    bars("downloading", 5_000_000, 10_000_000)
    assert bars._bars is not None and bars._bars.tasks[0].completed == 5_000_000
    bars("downloading", 10_000_000, 10_000_000)
    assert bars._bars is None
    assert "downloading" in terminal.getvalue()


def test_close_takes_bars_away(use_terminal, monkeypatch):
    use_terminal()
    monkeypatch.setattr(progress, "_PATIENCE_SECONDS", -1.0)
    bars = TerminalProgress()
    bars("a", 1, 2)
    assert bars._bars is not None
    bars.close()
    assert bars._bars is None


def test_only_on_a_terminal(use_terminal, monkeypatch):
    use_terminal()
    assert progress.default_progress() is not None
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert progress.default_progress() is None
