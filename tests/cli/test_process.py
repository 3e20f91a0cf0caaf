"""The program as its own process: speed of help, imports, pipes, signals, terminals."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.cli.conftest import Run

from anyorder.cli.terminal import LineProgress

PROGRAM = [sys.executable, "-m", "anyorder.cli.main"]
HEAVY = ("torch", "numpy", "tokenizers", "rich", "llguidance", "huggingface_hub", "jinja2")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["generate", "--help"], ["methods"], ["methods", "beam_search"]]
)
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom anyorder.cli.main import main\n"
        f"assert main({arguments!r}) == 0\n"
        f"assert not [name for name in {HEAVY!r} if name in sys.modules]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_mistakes_are_found_before_torch_is_imported() -> None:
    program = (
        "import sys\nfrom anyorder.cli.main import main\n"
        "assert main(['generate', 'x', '-m', 'nothing']) == 2\n"
        "assert main(['generate', 'x', '--temperature', 'nan']) == 2\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_generating_imports_no_compiler(model: str) -> None:
    """torch's own is another second or two of every cold start."""
    program = (
        "import sys\nfrom anyorder.cli.main import main\n"
        f"assert main(['generate', 'The', '-m', {model!r}, '--max-new-tokens', '2']) == 0\n"
        "loaded = [n for n in ('torch._dynamo', 'sympy', 'transformers') if n in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_help_takes_150_milliseconds_of_work() -> None:
    """Processor time rather than wall time, and the best of three: others use the machine too."""
    best = 1.0
    for _ in range(3):
        before = os.times()
        subprocess.run([*PROGRAM, "--help"], check=True, capture_output=True)
        after = os.times()
        used = after.children_user + after.children_system
        best = min(best, used - before.children_user - before.children_system)
    assert best < 0.15


def test_exit_code_and_streams_of_a_mistake() -> None:
    answer = subprocess.run([*PROGRAM, "gnerate"], capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith("anyorder: unknown command") and answer.stderr.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error(model: str) -> None:
    command = [*PROGRAM, "generate", "The", "-m", model, "--max-new-tokens", "200", "--ignore-end"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 141)


def test_interrupting_a_text_leaves_no_traceback(model: str) -> None:
    """Ctrl-C while it waits for a prompt and while it generates."""
    command = [*PROGRAM, "generate", "-m", model]
    flags = ["The", "--max-new-tokens", "250", "--ignore-end", "-n", "200"]
    for arguments in (command, [*command, *flags]):
        with subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            if arguments is command:
                time.sleep(0.5)
            else:
                assert process.stdout.read(1)
            process.send_signal(signal.SIGINT)
            assert (process.wait(), process.stderr.read()) == (130, b"")


# --------------------------------------------------------------------------------------- terminals
class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, command: list[str], **environment: str) -> None:
        self.screen, inside = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "200", **environment},
        )
        os.close(inside)
        self.shown = ""
        self._seen = 0

    def until(self, text: str, seconds: float = 60) -> str:
        """Wait until `text` shows after what was waited for last; returns all up to it."""
        start, deadline = self._seen, time.monotonic() + seconds
        while (found := self.shown.find(text, start)) < 0:
            assert self._read(deadline - time.monotonic()), f"no {text!r} in {self.shown!r}"
        self._seen = found + len(text)
        return self.shown[start : self._seen]

    def _read(self, seconds: float) -> bool:
        if not select.select([self.screen], [], [], max(seconds, 0))[0]:
            return False
        try:
            data = os.read(self.screen, 4096)
        except OSError:  # how Linux says that the other side is closed
            return False
        self.shown += data.decode("utf-8", "replace")
        return bool(data)

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def interrupt(self) -> None:
        """What Ctrl-C does, a moment after what was waited for: readline loses a signal that comes
        between its showing the prompt and its waiting for keys."""
        time.sleep(0.3)
        self.process.send_signal(signal.SIGINT)

    def wait(self) -> int:
        """The rest of the output is read; returns the exit code."""
        while self._read(60):
            pass
        os.close(self.screen)
        return self.process.wait()


@pytest.fixture
def open_terminal() -> Iterator[Callable[..., Terminal]]:
    """Makes terminals; whatever still runs on one after the test is ended."""
    opened: list[Terminal] = []

    def start(command: list[str], **environment: str) -> Terminal:
        opened.append(Terminal(command, **environment))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.process.kill()
        terminal.process.wait()


def test_chat_on_a_terminal(open_terminal: Callable[..., Terminal], model: str) -> None:
    """Prompt, answer, dim status line, Ctrl-C that stops only the answer, Ctrl-D that leaves."""
    terminal = open_terminal([*PROGRAM, "chat", "-m", model, "--ignore-end"])
    terminal.until("/help lists the commands")
    terminal.until("> ")
    terminal.type("/set max_new_tokens 4\n")
    terminal.until("> ")
    terminal.type("Hi\n")
    assert "\x1b[2m" in terminal.until("exact")
    terminal.until("> ")
    terminal.interrupt()
    terminal.until("Ctrl-D or /exit leaves")
    terminal.until("> ")
    terminal.type("/set max_new_tokens 120\n")
    terminal.until("> ")
    terminal.type("/set n 1024\n")
    terminal.until("> ")
    terminal.type("Go on\n")
    terminal.until("\n")
    time.sleep(1.5)  # a busy machine may take its time to begin; the answer takes much longer
    terminal.interrupt()
    terminal.until("(stopped)")
    terminal.until("> ")
    terminal.type("\x04")
    assert terminal.wait() == 0


def test_no_color_is_respected(open_terminal: Callable[..., Terminal], model: str) -> None:
    terminal = open_terminal([*PROGRAM, "chat", "-m", model, "--max-new-tokens", "3"], NO_COLOR="1")
    terminal.until("> ")
    terminal.type("Hi\n")
    shown = terminal.until("exact")
    assert "\x1b[3" not in shown and "\x1b[9" not in shown
    terminal.type("/exit\n")
    assert terminal.wait() == 0


def test_generated_control_characters_do_not_reach_a_terminal(
    open_terminal: Callable[..., Terminal], run: Run, model: str
) -> None:
    arguments = ["generate", "The", "-m", model, "--regex", "a\x1b\\[31mb\n"]
    terminal = open_terminal([*PROGRAM, *arguments])
    assert terminal.wait() == 0
    assert "a[31mb" in terminal.shown and "\x1b[31m" not in terminal.shown
    assert run(*arguments).out == "a\x1b[31mb\n\n"


def test_progress_on_a_terminal_and_without(open_terminal: Callable[..., Terminal]) -> None:
    """A bar that comes and goes on a terminal; elsewhere a line after a second."""
    program = (
        "import time\nfrom anyorder.cli.terminal import progress\n"
        "shown = progress()\n"
        "for done in range(8):\n    shown('downloading', done, 8)\n    time.sleep(0.2)\n"
        "shown('downloading', 8, 8)\nshown.close()\n"
    )
    terminal = open_terminal([sys.executable, "-c", program])
    assert terminal.wait() == 0
    assert "downloading" in terminal.shown
    assert "\x1b[2K" in terminal.shown  # taken away again
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert answer.stdout == "" and answer.stderr.count("\n") == 1
    assert answer.stderr.startswith("downloading: ")


def test_lines_come_after_a_second_and_then_every_ten(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    shown = LineProgress(lambda: now)
    for now in (0.0, 0.5, 1.5, 5.0, 12.0, 13.0):
        shown("loading", int(now * 4), 100)
    shown("loading", 100, 100)
    shown.close()
    assert capsys.readouterr().err == "loading: 6%\nloading: 48%\n"


def test_module_runs_from_any_folder(tmp_path: Path) -> None:
    answer = subprocess.run([*PROGRAM, "methods"], cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 0 and answer.stdout.startswith("method ")
