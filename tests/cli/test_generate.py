"""`anyorder generate`: the text, the JSON, the choices, the guides, the files."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tests.cli.conftest import Run

import anyorder
from anyorder.cli.parser import Parser
from anyorder.cli.request_flags import add_request_flags, flag_of, request_fields
from anyorder.core.options import Option, describe
from anyorder.core.request import Request

REPORT = {
    "num_prompt_tokens",
    "num_new_tokens",
    "num_forward_passes",
    "tokens_per_pass",
    "num_cached_tokens",
    "prefill_seconds",
    "decode_seconds",
    "mean_accepted_length",
    "exact",
}
FIELDS = {"text", "tokens", "logprobs", "finish_reason", "method", "report", "trace"}


@pytest.fixture
def generate(run: Run, model: str) -> Run:
    def call(*arguments: str, **others: Any) -> Any:
        return run("generate", "-m", model, "--max-new-tokens", "8", *arguments, **others)

    return call


def test_text_goes_to_stdout_and_equals_python(generate: Run, model: str) -> None:
    outcome = generate("The capital of")
    engine = anyorder.Engine(model)
    expected = engine.generate("The capital of", max_new_tokens=8)
    assert (outcome.code, outcome.out, outcome.err) == (0, expected.text + "\n", "")


def test_json_is_one_object_with_the_contract_s_fields(generate: Run) -> None:
    outcome = generate("The capital of", "--json")
    data = outcome.json
    assert set(data) >= FIELDS and set(data["report"]) >= REPORT
    assert outcome.out.count("\n") == 1 and outcome.err == ""
    assert len(data["tokens"]) == len(data["logprobs"]) == len(data["trace"]) == 8
    assert data["finish_reason"] == "length"
    assert generate("The capital of").out == data["text"] + "\n"


def test_sampled_text_is_that_of_its_seed(generate: Run) -> None:
    controls = ("She said", "--temperature", "1.5", "--top-k", "50")
    first, again, other = (generate(*controls, "--seed", seed).out for seed in ("3", "3", "4"))
    assert first == again != other


@pytest.mark.parametrize("where", [(), ("-",)])
def test_prompt_from_stdin(generate: Run, where: tuple[str, ...]) -> None:
    assert generate(*where, stdin="The capital of\n").out == generate("The capital of").out
    assert generate(*where, stdin="a\n\n", **{}).out != generate("a").out  # one break is dropped


def test_chat_wraps_the_prompt_as_a_message(generate: Run, model: str) -> None:
    engine = anyorder.Engine(model)
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    for flags, chat in ((["--chat"], messages[1:]), (["--system", "Be kind."], messages)):
        data = generate("Hi", *flags, "--json").json
        assert data["prompt_tokens"] == engine.generate(chat, max_new_tokens=1).prompt_tokens


def test_choices_are_separated_and_labelled(generate: Run) -> None:
    flags = ("The", "-n", "3", "--temperature", "2", "--seed", "5")
    texts = [choice["text"] for choice in generate(*flags, "--json").json["choices"]]
    expected = [f"--- {number} of 3 ---\n{text}\n" for number, text in enumerate(texts, 1)]
    assert len(set(texts)) == 3 and generate(*flags).out == "".join(expected)


def test_method_and_its_options(generate: Run) -> None:
    flags = ("The", "--method", "beam_search", "-o", "width=3", "-o", "length_penalty=0", "-n", "2")
    data = generate(*flags, "--json").json
    scores = [choice["score"] for choice in data["choices"]]
    assert data["method"] == "beam_search" and scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(sum(data["choices"][0]["logprobs"]))


def test_a_drafter_and_its_options(generate: Run, model: str) -> None:
    plain = generate("The capital").out
    lookup = ("-o", "drafter.longest=3", "-o", "length=4", "-o", "adaptive=no")
    told = generate("The capital", "--method", "speculative", *lookup, "--stats")
    assert told.out == plain and " accepted at a time" in told.err
    drafted = ("--draft", model, "-o", "drafter=draft_model", "-o", "adaptive=no")
    told = generate("The capital", "--method", "speculative", *drafted, "--stats")
    assert told.out == plain and "passes by model: target 2, draft 6" in told.err
    wrong = generate("The", "--method", "speculative", "-o", "drafter.longst=3")
    assert wrong.code == 2
    assert "unknown prompt_lookup option 'longst'; did you mean 'longest'?" in wrong.err


def test_guides(generate: Run, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    schema |= {"additionalProperties": False}
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema))
    for value in (json.dumps(schema), str(file)):
        text = generate("The", "--json-schema", value, "--max-new-tokens", "100").out
        assert json.loads(text)["on"] in (True, False)
    assert re.fullmatch("[ab]{3}", generate("The", "--regex", "[ab]{3}").out.strip())
    grammar = tmp_path / "grammar.lark"
    grammar.write_text('start: "yes" | "no"\n')
    for value in (str(grammar), 'start: "yes" | "no"'):
        assert generate("The", "--lark", value).out.strip() in ("yes", "no")
    assert generate("The", "--choices", "red", "blue").out.strip() in ("red", "blue")
    assert generate("The", "--choice", "red").out == "red\n"


def test_lists_of_texts_and_tokens(generate: Run) -> None:
    tokens = generate("The capital of", "--json").json["tokens"]
    assert (
        generate("The capital of", "--stop-token", str(tokens[2]), "--json").json["tokens"]
        == (tokens[: tokens.index(tokens[2]) + 1])
    )
    banned = generate("The capital of", "--logit-bias", f"{tokens[0]}=-1e9", "--json").json
    assert banned["tokens"][0] != tokens[0]
    forced = generate("The", "--logit-bias", "40=1e6", "--logit-bias", "41=1e5", "--json").json
    assert forced["tokens"] == [40] * 8
    text = generate("The capital of").out.strip("\n")
    stop = text[2:4]
    assert generate("The capital of", "--stop", stop).out == text[: text.index(stop)] + "\n"
    bad = forced["text"][0]
    assert bad not in generate("The", "--logit-bias", "40=1e6", "--bad-word", bad).out
    flags = ("The", "--negative-prompt", "She said", "--guidance-scale", "4", "--json")
    assert generate(*flags).json["tokens"] != generate("The", "--json").json["tokens"]


def test_stats_and_traces(generate: Run, tmp_path: Path) -> None:
    for ending in ("svg", "html", "json"):
        file = tmp_path / f"trace.{ending}"
        outcome = generate("The <b>", "--stats", "--trace", str(file))
        assert outcome.err.startswith("8 new tokens in 8 passes (1.00 per pass); prompt ")
        assert outcome.err.count("\n") == 1
        text = file.read_text("utf-8")
        if ending == "svg":
            ElementTree.fromstring(text)
        elif ending == "json":
            assert json.loads(text)["prompt"] == "The <b>" and len(json.loads(text)["trace"]) == 8
        else:
            assert text.startswith("<!doctype html>") and "<b>" not in text


def test_dtype_and_cache_tokens(generate: Run) -> None:
    assert generate("The", "--dtype", "bfloat16", "--cache-tokens", "64").code == 0
    outcome = generate("The", "--cache-tokens", "16", "--max-new-tokens", "40")
    assert outcome.code == 2 and "cache" in outcome.err
    assert generate("The", "--cache-dtype", "int8").code == 0
    outcome = generate("The", "--cache-dtype", "int4")
    assert outcome.code == 2 and "cache_dtype must be int8, got 'int4'" in outcome.err


def test_draft_is_loaded_beside_the_target(generate: Run, model: str) -> None:
    assert generate("The", "--draft", model).out == generate("The").out
    assert "unknown model 'nothing'" in generate("The", "--draft", "nothing").err


# --------------------------------------------------------------------------- flags from the fields
def parsed(*flags: str) -> dict[str, Any]:
    parser = Parser(prog="test", description="")
    add_request_flags(parser)
    arguments: argparse.Namespace = parser.parse(list(flags))
    return request_fields(arguments)


@pytest.mark.parametrize("option", describe(Request), ids=lambda option: option.name)
def test_every_described_field_has_a_flag(option: Option) -> None:
    """A flag gives the field its value; without flags the request's own defaults hold."""
    if option.kind is bool:
        assert parsed(flag_of(option.name)) == {option.name: True}
        assert parsed(flag_of(f"no_{option.name}")) == {option.name: False}
        return
    text = option.choices[-1] if option.choices else "beam_search"
    value = {int: 7, float: 0.5, str: text}[option.kind]
    assert parsed(flag_of(option.name), str(value)) == {option.name: value}


def test_no_flags_no_fields() -> None:
    assert parsed() == {}
