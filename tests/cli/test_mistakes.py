"""Whatever the user gets wrong ends with exit code 2 and one line that says what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cli.conftest import Outcome, Run


def refused(outcome: Outcome, *words: str) -> None:
    """One line on stderr, nothing on stdout, exit code 2."""
    assert outcome.code == 2 and outcome.out == "", outcome
    assert outcome.err.startswith("anyorder: ") and outcome.err.count("\n") == 1, outcome.err
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err, outcome.err


# Refused without loading a model, so a model that does not exist is named.
EARLY: list[tuple[list[str], list[str]]] = [
    (["gnerate", "x"], ["unknown command 'gnerate'", "did you mean 'generate'"]),
    (["generate", "x", "--temprature", "1"], ["--temprature", "did you mean --temperature"]),
    (["generate", "x", "--seed"], ["--seed", "expected one argument"]),
    (["generate", "two", "words"], ["unexpected argument 'words'", "quotes"]),
    (["generate", "x", "--method", "beam"], ["unknown method", "did you mean 'beam_search'"]),
    (["generate", "x", "-o", "width=3"], ["unknown autoregressive option 'width'"]),
    (
        ["generate", "x", "--method", "beam_search", "-o", "widht=3"],
        ["unknown beam_search option", "did you mean 'width'"],
    ),
    (["generate", "x", "--method", "beam_search", "-o", "width"], ["name=value"]),
    (["generate", "x", "--method", "beam_search", "-o", "width=99"], ["from 1 to 64", "99"]),
    (["generate", "x", "--method", "beam_search", "-o", "width=x"], ["from 1 to 64", "'x'"]),
    (["generate", "x", "--temperature", "nan"], ["temperature", "0 to 1000", "nan"]),
    (["generate", "x", "--temperature", "-1"], ["temperature", "0 to 1000", "-1"]),
    (["generate", "x", "--temperature", "hot"], ["temperature", "'hot'"]),
    (["generate", "x", "--top-p", "1.5"], ["top_p", "from 0 to 1"]),
    (["generate", "x", "--seed", "1.5"], ["seed", "'1.5'"]),
    (["generate", "x", "-n", "0"], ["n must be", "from 1"]),
    (["generate", "x", "--max-new-tokens", "0"], ["max_new_tokens is 0"]),
    (["generate", "x", "--max-new-tokens", "-5"], ["max_new_tokens", "at least 0"]),
    (["generate", "x", "--min-new-tokens", "9", "--max-new-tokens", "3"], ["min_new_tokens"]),
    (["generate", "x", "--logit-bias", "5"], ["--logit-bias", "ID=NUMBER"]),
    (["generate", "x", "--logit-bias", "a=1"], ["--logit-bias", "token id"]),
    (["generate", "x", "--logit-bias", "5=nan"], ["logit_bias"]),
    (["generate", "x", "--stop", ""], ["stop", "non-empty"]),
    (["generate", "x", "--stop-token", "x"], ["--stop-token", "'x'"]),
    (["generate", "x", "--json-schema", "{bad"], ["JSON Schema is not valid JSON"]),
    (["generate", "x", "--json-schema", "[1]"], ["JSON Schema is an object"]),
    (["generate", "x", "--json-schema", "missing.json"], ["cannot read 'missing.json'"]),
    (["generate", "x", "--lark", "missing.lark"], ["cannot read 'missing.lark'"]),
    (["generate", "x", "--regex", "a", "--choice", "b"], ["--regex and --choices", "exclude"]),
    (["generate", "x", "--negative-prompt", "y"], ["guidance_scale"]),
    (["generate", "x", "--cache-tokens", "0"], ["--cache-tokens", "at least 1"]),
    (["generate", "x", "--trace", "picture.png"], [".svg, .html, .json"]),
    (["generate", "x", "--trace", "nowhere/picture.svg"], ["no folder 'nowhere'"]),
    (["generate", "half \udcff"], ["not UTF-8"]),
    (["generate", "x", "-m", "smolm2-135m-instruct"], ["did you mean 'smollm2-135m-instruct'"]),
    (["generate", "x", "-m", "./nowhere"], ["there is no file or folder './nowhere'"]),
    (["generate", "x"], ["not on this machine", "ANYORDER_OFFLINE", "models pull"]),
    (["generate", "x", "-m", "some/hub-id"], ["cannot get 'some/hub-id'", "ANYORDER_OFFLINE"]),
    (["chat", "--temperature", "nan"], ["temperature"]),
    (["methods", "beam"], ["did you mean 'beam_search'"]),
    (["models", "lsit"], ["unknown models action 'lsit'", "did you mean 'list'"]),
    (["models", "pull"], ["needs a model's name"]),
    (["models", "list", "x"], ["takes no name"]),
    (["models", "pull", "smollm"], ["unknown model 'smollm'"]),
    (["models", "show", "smollm"], ["unknown model 'smollm'"]),
    (["models", "rm", "smollm2-135m-instruct"], ["nothing to remove"]),
    (["inspect", "x", "--tolerance", "nan"], ["--tolerance", "from 0 to 1"]),
    (["inspect", "x", "--output", "a.png"], [".svg"]),
    (["--jsn"], ["unknown flag '--jsn'"]),
]


@pytest.mark.parametrize(("arguments", "words"), EARLY, ids=lambda value: " ".join(value)[:60])
def test_refused_before_a_model_is_loaded(run: Run, arguments: list[str], words: list[str]) -> None:
    refused(run(*arguments), *words)


LATE: list[tuple[list[str], list[str]]] = [
    (["generate", ""], ["prompt is empty"]),
    (["generate", "word " * 400], ["context of 256", "no room"]),
    (["generate", "x", "--max-new-tokens", "1000000000"], ["context of 256", "at most"]),
    (["generate", "x", "--stop-token", "100000"], ["stop_tokens", "token ids are 0 to"]),
    (["generate", "x", "--logit-bias", "100000=1"], ["logit_bias", "token ids are 0 to"]),
    (["generate", "x", "--json-schema", '{"type": "wrong"}'], ["wrong"]),
    (["generate", "x", "--regex", "("], ["regex"]),
    (["generate", "x", "--lark", "start: nothing"], ["nothing"]),
    (["generate", "x", "--dtype", "int3"], ["dtype must be one of float32"]),
    (["generate", "x", "--method", "beam_search", "--temperature", "1"], ["temperature"]),
    (["score", ""], ["prompt is empty"]),
    (["score", "x"], ["single token"]),
    (["inspect", "word " * 600], ["takes 2 to 512"]),
]


@pytest.mark.parametrize(("arguments", "words"), LATE, ids=lambda value: " ".join(value)[:40])
def test_refused_by_the_model(run: Run, model: str, arguments: list[str], words: list[str]) -> None:
    refused(run(*arguments, "-m", model), *words)


def test_stdin_that_is_no_text(run: Run, model: str) -> None:
    refused(run("generate", "-m", model, stdin=b"\xff\xfe"), "stdin is not UTF-8")
    refused(run("generate", "-m", model, stdin=""), "prompt is empty")


# ------------------------------------------------------------------------------ damaged checkpoints
@pytest.fixture
def copy(model: str, tmp_path: Path) -> Path:
    """A copy of the checkpoint to damage."""
    return Path(shutil.copytree(model, tmp_path / "copy"))


def test_truncated_weights(run: Run, copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    refused(run("generate", "x", "-m", str(copy)), "model.safetensors")


def test_missing_and_misshaped_tensors(run: Run, copy: Path) -> None:
    file = copy / "model.safetensors"
    weights = load_file(file)
    save_file({k: v for k, v in weights.items() if k != "model.norm.weight"}, file)
    refused(run("generate", "x", "-m", str(copy)), "lacks tensor 'model.norm.weight'")
    save_file({**weights, "model.norm.weight": torch.ones(3)}, file)
    refused(run("generate", "x", "-m", str(copy)), "model.norm.weight", "[3]")


def test_no_configuration(run: Run, copy: Path) -> None:
    (copy / "config.json").unlink()
    refused(run("generate", "x", "-m", str(copy)), "config.json")
    (copy / "config.json").write_text("{")
    refused(run("generate", "x", "-m", str(copy)), "config.json")


def test_unknown_architecture(run: Run, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "lama"}))
    refused(run("generate", "x", "-m", str(copy)), "'lama'", "llama")


def test_pickled_weights(run: Run, copy: Path) -> None:
    pickled = copy / "model.safetensors"
    pickled.rename(copy / "pytorch_model.bin")
    refused(run("generate", "x", "-m", str(copy)), "pickle")
    refused(run("generate", "x", "-m", str(copy / "pytorch_model.bin")), "pickle", "safetensors")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64])
def test_damaged_gguf(run: Run, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    refused(run("generate", "x", "-m", str(tmp_path / "model.gguf")))


def test_hostile_chat_template(run: Run, copy: Path) -> None:
    template = "{{ messages.__class__.__mro__ }}"
    (copy / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    (copy / "chat_template.jinja").write_text(template)
    refused(run("generate", "x", "--chat", "-m", str(copy)), "template")


def test_no_chat_template(run: Run, copy: Path) -> None:
    (copy / "tokenizer_config.json").write_text("{}")
    refused(run("generate", "x", "--chat", "-m", str(copy)), "no chat template")
