"""Planned diffusion: scripted documents come back, cached passes are what training ran, and every
mistake in a plan is survived."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.test_contract import MASK, TAGS, contract_engine
from tests.tiny import VOCABULARY, assert_no_page_is_lost, tiny_engine, tiny_model

from anyorder.core.batch import KeyValuePool, PackedBatch
from anyorder.core.errors import InvalidRequest, RequestFailed, UnsupportedMethod
from anyorder.core.method import Abilities
from anyorder.core.plans import TAGS as TAG_TEXTS
from anyorder.core.plans import span_numbers
from anyorder.core.request import Completion, Guide, Request
from anyorder.engine.engine import Engine
from anyorder.model.loaded import LoadedModel
from anyorder.model.tokenizer import Tokenizer
from anyorder.training.planning import encode_plan, plan_text, without_plans
from anyorder.training.tokenizers import train_tokenizer

SPELT = {"<": "topic", ">": "topic_end", "(": "span", ")": "span_end", "|": "sync", "_": "pad"}
LETTERS = {token: sign for sign, name in SPELT.items() for token in [getattr(TAGS, name)]}
LETTERS |= {0: "$", MASK: "?"} | {n + 1: chr(ord("a") + n) for n in range(26)}
LETTERS |= dict(TAGS.digits)
IDS = {letter: token for token, letter in LETTERS.items()}


def ids(text: str) -> list[int]:
    """`ab<c1>(defghijk__)|x$`: the end token is $, the mask ?."""
    return [IDS[letter] for letter in text]


def text_of(tokens: list[int]) -> str:
    return "".join(LETTERS.get(token, "#") for token in tokens)


class Scripted:
    """A network that knows one document by heart: text rows tell the next token outside of spans,
    masks in spans their own. What it was asked to run is remembered."""

    cache_shapes = ((1, 8),)
    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, document: list[int], tags: Any = TAGS, size: int = VOCABULARY) -> None:
        numbers = span_numbers(document, tags)
        outside = [place for place, number in enumerate(numbers) if number < 0]
        self.next = {a: document[b] for a, b in itertools.pairwise(outside)}
        self.own = {p: document[p] for p, number in enumerate(numbers) if number >= 0}
        self.size = size
        self.runs: list[str] = []
        self.mask = size - 1

    def hidden(self, batch: PackedBatch, pool: KeyValuePool | None) -> torch.Tensor:
        self.runs.append(text_of(batch.tokens_N.tolist()))
        rows = torch.zeros(len(batch.tokens_N), self.size)
        for row, (token, place) in enumerate(
            zip(batch.tokens_N.tolist(), batch.positions_N.tolist(), strict=True)
        ):
            told = self.own.get(place, 0) if token == self.mask else self.next.get(place, 0)
            rows[row, told] = 8.0 - (place % 7) / 10 if token == self.mask else 30.0
        return rows

    def logits(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        return hidden_MW

    def heads(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        raise AssertionError


def scripted(document: str) -> tuple[Engine, Scripted]:
    network = Scripted(ids(document))
    abilities = Abilities(
        name="scripted",
        vocabulary_size=VOCABULARY,
        context_length=256,
        end_tokens=frozenset({0}),
        mask_token=MASK,
        plan_tokens=TAGS,
        attention=frozenset({"causal", "bidirectional"}),
    )
    model = LoadedModel(network=network, abilities=abilities)
    return Engine(model, cache_tokens=1024), network


def run(document: str, prompt: int = 1, *, limit: int = 100, **options: Any) -> Completion:
    """Decode a document that the network knows, from a prompt of some of its tokens."""
    engine, _ = scripted(document)
    completion = engine.generate(
        ids(document)[:prompt], method="planned_diffusion", max_new_tokens=limit, options=options
    )
    assert_no_page_is_lost(engine)
    return completion


DOCUMENT = "abc<d1><e2>(fghijklmn_)(opqrstuvwxyzabcdef__)|gh<x>(ijklm)|nop$"


def test_the_answer_is_text_and_spans_in_order() -> None:
    found = run(DOCUMENT, 2, default_length=5)
    assert text_of(found.tokens) == "cfghijklmnopqrstuvwxyzabcdefghijklmnop$"
    assert found.finish_reason == "stop" and not found.report.notes
    tagged = run(DOCUMENT, 2, default_length=5, keep_tags=True)
    assert text_of(tagged.tokens) == DOCUMENT[2:]
    # From anywhere in a plan, too.
    for prompt in range(3, 12):
        assert text_of(run(DOCUMENT, prompt, default_length=5).tokens).endswith("mnop$")
        tagged = run(DOCUMENT, prompt, default_length=5, keep_tags=True)
        assert text_of(tagged.tokens) == DOCUMENT[prompt:]


def test_spans_of_a_plan_are_filled_by_the_same_passes() -> None:
    engine, network = scripted("ab<c1><d1>(efghijklm_)(nopqrstuv_)|w$")
    found = engine.generate(
        ids("ab"),
        method="planned_diffusion",
        max_new_tokens=40,
        options={"commit": {"name": "sequential"}},
    )
    assert text_of(found.tokens) == "efghijklmnopqrstuvw$"
    blank = "(??????????)"
    # One pass a token of text; both spans' places one by one; once more with the sync; the end.
    assert network.runs[:8] == ["ab", "<", "c", "1", ">", "<", "d", "1"]
    assert network.runs[8:10] == [">", blank * 2]
    assert network.runs[10] == "(e?????????)(n?????????)"
    assert network.runs[19:] == ["(efghijklm_)(nopqrstuv_)|", "w"]
    assert found.report.num_forward_passes == 21
    # Both spans are placed by the same passes, whenever they are streamed.
    assert [entry.step for entry in found.trace] == [*range(10, 19), *range(10, 19), 20, 21]


@pytest.mark.parametrize(("ratio", "passes"), [(1.0, 20), (0.5, 10), (0.2, 4), (0.05, 1)])
def test_the_longest_span_decides_how_many_steps_there_are(ratio: float, passes: int) -> None:
    engine, network = scripted("ab<c1><d2>(efghijklm_)(nopqrstuvwxyzabcdef_)|w$")
    options = {"commit": {"name": "confidence"}, "step_ratio": ratio}
    found = engine.generate(
        ids("ab"), method="planned_diffusion", max_new_tokens=60, options=options
    )
    assert text_of(found.tokens) == "efghijklmnopqrstuvwxyzabcdefw$"
    assert sum("?" in tokens for tokens in network.runs) == passes


def test_a_threshold_is_each_spans_own() -> None:
    """All is sure here, so one pass does for both; with an impossible level, one place each."""
    for level, passes in ((0.9, 1), (1.0, 10)):
        engine, network = scripted("ab<c1><d1>(efghijklm_)(nopqrstuv_)|w$")
        engine.generate(
            ids("ab"),
            method="planned_diffusion",
            max_new_tokens=40,
            options={"commit": {"name": "threshold", "level": level}, "length_scale": 1.0},
        )
        assert sum("?" in tokens for tokens in network.runs) == passes


def test_lengths_are_scaled() -> None:
    found = run("ab<c2>(efghijklmn)|w$", 2, length_scale=0.5)
    assert text_of(found.tokens) == "efghijklmnw$"
    found = run("ab<c1>(efghijklmnopqrs)|w$", 2, length_scale=1.5)
    assert text_of(found.tokens) == "efghijklmnopqrsw$"


# ---------------------------------------------------------------------------------- malformed plans
@pytest.mark.parametrize(
    ("document", "options", "expected"),
    [
        # A topic without a number, with no words, or with zero: the default length.
        ("ab<c>(xyz)|w$", {"default_length": 3}, "xyzw$"),
        ("ab<>(xyz)|w$", {"default_length": 3}, "xyzw$"),
        # A topic inside of a topic is the next one.
        ("ab<c<d>(xyz)(uvw)|w$", {"default_length": 3}, "xyzuvww$"),
        # Never closed: it ends with the plan.
        ("ab<cd|", {"default_length": 1}, None),
        # A plan without topics has no spans.
        ("ab|w|x$", {}, "wx$"),
        ("ab>w>x$", {}, "wx$"),
        # Text between plan and sync is text.
        ("ab<c>k(xyz)|w$", {"default_length": 3}, "kxyzw$"),
        # More is promised than is allowed, and more topics.
        ("ab<c22>(xyzuv)|w$", {"span_length": 5}, "xyzuvw$"),
        ("ab<c><d><e>(xy)(uv)|w$", {"spans": 2, "default_length": 2}, "xyuvw$"),
        # A text that ends with its plan.
        ("ab<c>$(xyz)", {"default_length": 3}, None),
        # An end of the text inside of a span.
        ("ab<c>(xy$z)|w$", {"default_length": 4}, "xy$"),
        # Padding anywhere is no text.
        ("ab<c>(_x_y)|w$", {"default_length": 4}, "xyw$"),
    ],
)
def test_malformed_plans(document: str, options: dict[str, Any], expected: str | None) -> None:
    found = run(document, 2, **options)
    if expected is not None:
        assert text_of(found.tokens) == expected
    assert found.finish_reason in ("stop", "length")


def test_a_topic_that_never_ends_is_ended() -> None:
    found = run("ab<" + "c" * 30 + "|", 2, plan_length=8, default_length=2, limit=4, keep_tags=True)
    assert text_of(found.tokens) == "<ccc"
    engine, network = scripted("ab<" + "c" * 30)
    engine.generate(
        ids("ab"),
        method="planned_diffusion",
        max_new_tokens=3,
        options={"plan_length": 8, "default_length": 2},
    )
    # Eight hidden tokens, the last one is run, and then there are spans and a sync.
    assert network.runs[:10] == ["ab", "<", *["c"] * 7, "(??)"]


def test_a_text_that_ends_with_its_plan_has_its_spans_first() -> None:
    engine, network = scripted("ab<c>$(xyz)")
    network.own = {6: IDS["x"], 7: IDS["y"], 8: IDS["z"]}
    found = engine.generate(
        ids("ab"),
        method="planned_diffusion",
        max_new_tokens=20,
        options={"default_length": 3},
    )
    assert text_of(found.tokens) == "xyz$" and found.finish_reason == "stop"
    assert not network.runs[-1].endswith("|")  # nothing reads the spans: no further pass


def test_without_room_there_are_no_plans() -> None:
    """Prompt and answer take the whole context, so all tags are banned."""
    engine = contract_engine(ends=False)
    whole = engine.abilities.context_length
    request = Request(prompt=[4, 9], method="planned_diffusion", max_new_tokens=whole - 2)
    bias = {TAGS.topic: 5.0, TAGS.sync: 5.0}
    found = engine.generate(dataclasses.replace(request, logit_bias=bias))
    assert len(found.tokens) == whole - 2 and not set(found.tokens) & set(LETTERS_OF_TAGS)
    assert "no room for plans" in found.report.notes[0]
    # With some overhead only, the plans stop when it is used up, and the text goes on.
    short = dataclasses.replace(
        request, max_new_tokens=60, logit_bias=bias, options={"overhead": 40, "default_length": 4}
    )
    engine = contract_engine(ends=False)
    found = engine.generate(short)
    assert len(found.tokens) == 60 and found.finish_reason == "length"
    assert not found.report.notes
    assert 60 < found.report.num_forward_passes <= 105
    free = engine.generate(dataclasses.replace(short, options={}))
    assert free.report.num_forward_passes > 200


LETTERS_OF_TAGS = [getattr(TAGS, name) for name in SPELT.values()]


def test_a_full_context_cuts_the_spans() -> None:
    """Twelve places beside the answer: two tags, a sync and nine masks."""
    document = "ab<c22>(" + "d" * 9 + ")|wxyz$"
    found = run(document, 2, limit=30, overhead=17)
    assert text_of(found.tokens) == "d" * 9 + "wxyz$"
    # The first spans get theirs, the last what is left, if it is anything.
    for rest, second in ((5, "(eee)"), (3, "(e)"), (2, "")):
        document = f"ab<c22><d1>(defghijklm){second}|wxyz$"
        found = run(document, 2, limit=30, span_length=10, overhead=9 + 1 + 12 + rest)
        assert text_of(found.tokens) == "defghijklm" + second.strip("()") + "wxyz$"


@pytest.mark.parametrize("prompt", ["ab<c>(de)", "ab<c>(d", "ab<c>(", "a(d)b|c(e)"])
def test_spans_in_a_prompt_get_the_sync_that_they_lack(prompt: str) -> None:
    whole = f"{prompt.rstrip(')')})|"
    engine, network = scripted(f"{whole}fg$")
    found = engine.generate(ids(prompt), method="planned_diffusion", max_new_tokens=9)
    assert text_of(found.tokens) == "fg$"
    assert network.runs == [whole, "f", "g"]


def test_every_pass_over_spans_draws_with_numbers_of_its_own() -> None:
    engine, _ = scripted("ab<c1>(efghijklm_)|w<d>(xyz)|v$")
    options = {"commit": "random", "default_length": 3}
    handle = engine.submit(
        Request(prompt=ids("ab"), method="planned_diffusion", max_new_tokens=40, options=options)
    )
    streams = []
    while engine.tick():
        for running in engine._scheduler.running:
            streams += [job.request.stream for job in running.jobs if job.request.canvas]
    assert text_of(handle.result().tokens) == "efghijklmwxyzv$"
    assert len(streams) == len(set(streams)) == 13


# ------------------------------------------------------------------------- what training promises
def test_a_planned_text_comes_back_character_for_character(tmp_path: Path) -> None:
    text = "To buy:\n\n- green apples, ripe\n- pears\n  (two)\n\nThat is all.\n\nBye."
    tokenizer = plan_tokenizer(tmp_path, text)
    tags = tokenizer.plan_tokens
    assert tags is not None
    planned = plan_text(text)
    document = encode_plan(planned, tags, lambda part: tokenizer.encode(part, parse_special=False))
    assert {tags.topic, tags.span, tags.sync} < set(document)
    end = min(tokenizer.end_tokens)
    network = Scripted([*document, end], tags, tokenizer.vocabulary_size)
    assert tokenizer.mask_token is not None
    network.mask = tokenizer.mask_token
    abilities = Abilities(
        name="scripted",
        vocabulary_size=tokenizer.vocabulary_size,
        context_length=512,
        end_tokens=tokenizer.end_tokens,
        mask_token=tokenizer.mask_token,
        plan_tokens=tags,
        attention=frozenset({"causal", "bidirectional"}),
    )
    model = LoadedModel(network=network, abilities=abilities, tokenizer=tokenizer)
    engine = Engine(model, cache_tokens=1024)
    found = engine.generate(document[:1], method="planned_diffusion", max_new_tokens=200)
    assert tokenizer.decode(document[:1]) + found.text == text == without_plans(planned)


def plan_tokenizer(folder: Path, text: str) -> Tokenizer:
    """A tokenizer with tags, mask and end."""
    control = {"eos_token": "<|end|>", "mask_token": "<|mask|>"}
    return train_tokenizer([text], folder, size=300, control=control, further=TAG_TEXTS)


def test_what_cannot_work_is_refused() -> None:
    engine = contract_engine()
    request = Request(prompt=ids("ab"), method="planned_diffusion")
    with pytest.raises(InvalidRequest, match="leave keep_tags at false, or the guide out"):
        tagged = dataclasses.replace(request, options={"keep_tags": True})
        engine.generate(dataclasses.replace(tagged, guide=Guide.regex("a")))
    with pytest.raises(InvalidRequest, match=r"ancestral needs .* set the option step_ratio"):
        engine.generate(dataclasses.replace(request, options={"commit": "ancestral"}))
    with pytest.raises(RequestFailed, match="cannot guide a prompt with spans"):
        engine.generate(dataclasses.replace(request, prompt=ids("ab<c>(de)|"), guidance_scale=2.0))
    model = tiny_model()
    abilities = dataclasses.replace(model.abilities, mask_token=MASK)
    with pytest.raises(UnsupportedMethod, match="the tags of plans as control tokens; tiny"):
        tiny_engine(model=dataclasses.replace(model, abilities=abilities)).generate(request)
    for attention, message in (
        ({"bidirectional"}, "causal attention too; tiny"),
        ({"causal"}, "bidirectional attention; tiny was trained with causal"),
    ):
        abilities = dataclasses.replace(
            model.abilities, attention=frozenset(attention), mask_token=MASK, plan_tokens=TAGS
        )
        with pytest.raises(UnsupportedMethod, match=message):
            tiny_engine(model=dataclasses.replace(model, abilities=abilities)).generate(request)


def test_controls_reach_plans_and_spans() -> None:
    """Minimum lengths count what is shown, and alternatives come with every token."""
    engine = contract_engine()
    base = Request(
        prompt=ids("ab<c><d>"),
        method="planned_diffusion",
        max_new_tokens=40,
        logit_bias={TAGS.sync: 8.0, TAGS.topic: 4.0, TAGS.topic_end: 4.0, TAGS.pad: 3.0, 0: 12.0},
        options={"default_length": 6},
        logprobs=2,
    )
    early = engine.generate(base)
    assert early.finish_reason == "stop" and len(early.tokens) < 12
    late = engine.generate(dataclasses.replace(base, min_new_tokens=20))
    assert len(late.tokens) > 20 and 0 not in late.tokens[:20]
    for found in (early, late):
        assert not set(found.tokens) & set(LETTERS_OF_TAGS)
        assert all(len(entry.alternatives) == 2 for entry in found.trace)
