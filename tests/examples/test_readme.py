"""The README says what is true: its blocks run, its outputs are the outputs, its links lead."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.server.conftest import running

from anyorder.cli.main import VERBS, main
from anyorder.core import lookup
from anyorder.model import loaded
from anyorder.model.loaded import LoadedModel, load

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
PROGRAM = [sys.executable, "-m", "anyorder.cli.main"]


def blocks(language: str) -> list[str]:
    """Fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    """Every `anyorder ...` of the page, in words."""
    lines = re.findall(r"(?:^|`|\$ )(anyorder [^`\n]+)", README, re.MULTILINE)
    return [shlex.split(line)[1:] for line in lines]


def test_short() -> None:
    assert len(README.splitlines()) < 150


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert targets and all((ROOT / target).exists() for target in targets)


def test_every_method_and_verb_is_named() -> None:
    assert all(f"[`{name}`]" in README for name in lookup.names("methods"))
    assert {words[0] for words in commands()} == set(VERBS) - {"models"}


def test_every_family_is_named() -> None:
    plain = re.sub(r"[-_ ]", "", README).lower()
    families = [name.replace("_", "") for name in lookup.names("model/architectures")]
    assert [name for name in families if name not in plain] == []


def test_python_example_is_five_lines() -> None:
    example, _ = blocks("python")
    assert len([line for line in example.splitlines() if line]) == 5


@pytest.mark.weights
def test_python_example() -> None:
    (example, _), (expected,) = blocks("python"), blocks("text")
    answer = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True)
    assert answer.stdout == expected, answer.stderr


@pytest.mark.weights
def test_client_example() -> None:
    _, example = blocks("python")
    with running(load("smollm2-135m-instruct")) as live:
        example = example.replace("http://127.0.0.1:8000", live.url)
        answer = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True)
    text, _, num_passes = answer.stdout.strip().rpartition(" ")
    assert text and 0 < int(num_passes) <= 17, answer.stderr


@pytest.mark.weights
@pytest.mark.parametrize("session", blocks("console"))
def test_console_sessions(session: str) -> None:
    line, _, expected = session.partition("\n")
    answer = subprocess.run(
        [*PROGRAM, *shlex.split(line)[2:]], capture_output=True, text=True, check=False
    )
    assert (answer.stdout or answer.stderr) == expected


def runnable() -> list[list[str]]:
    """Commands that do not wait for a user, take many minutes, or are a mistake on purpose."""
    others = [words for words in commands() if words[0] not in ("chat", "train", "serve", "bench")]
    return [words for words in others if "beam_serch" not in words]


def test_the_recipe_that_is_trained_is_there() -> None:
    recipes = [words[1] for words in commands() if words[0] == "train"]
    assert recipes and all((ROOT / recipe).is_file() for recipe in recipes)


@functools.cache
def loaded_once(model: str, dtype: str | None, quantize: str | None) -> LoadedModel:
    """A model for all commands that run in this process."""
    return load(model, dtype=dtype, quantize=quantize)


@pytest.mark.weights
@pytest.mark.parametrize("words", runnable(), ids=lambda words: " ".join(words)[:50])
def test_every_command_runs(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default model stands for a path, and texts are kept short."""
    monkeypatch.chdir(tmp_path)

    def once(
        model: str, *, dtype: str | None = None, quantize: str | None = None, progress: object
    ) -> LoadedModel:
        return loaded_once(model, dtype, quantize)

    monkeypatch.setattr(loaded, "load", once)
    (tmp_path / "docs").mkdir()
    if "path/to/model" in words:
        words = [word for word in words if word not in ("-m", "path/to/model")]
    if (
        words[0] == "generate"
        and "--help" not in words
        and not {
            "--max-new-tokens",
            "--canvas",
        }
        & {*words}
    ):
        words += ["--max-new-tokens", "4"]
    assert main(words) == 0


@pytest.mark.weights
def test_the_picture_is_what_the_command_draws(tmp_path: Path) -> None:
    """The same tokens in the same passes; probabilities may differ in the last digits."""
    (words,) = (words for words in commands() if "docs/trace.svg" in words)
    words = [str(tmp_path / "trace.svg") if word == "docs/trace.svg" else word for word in words]
    subprocess.run([*PROGRAM, *words], capture_output=True, check=True)
    tooltip = re.compile(r"<title>(.*?), p = ")
    drawn = tooltip.findall((tmp_path / "trace.svg").read_text("utf-8"))
    assert drawn == tooltip.findall((ROOT / "docs/trace.svg").read_text("utf-8")) != []
