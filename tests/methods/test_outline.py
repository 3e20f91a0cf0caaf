"""Outline against autoregressive decoding of every part by itself, plans of all sorts, refusals."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from tests.methods.test_contract import LINE, contract_engine, letters, prompt
from tests.tiny import assert_no_page_is_lost, tiny_engine

from anyorder.core.errors import InvalidRequest, PoolTooSmall
from anyorder.core.request import Completion, Event, Guide, Request
from anyorder.methods.outline import _points

OPTIONS = {"points": 3, "plan_length": 16, "part_length": 7, "plan_lead": "1."}
PLANNED = [12, 43, 44]
"""Seeds of prompts that the tiny network goes on from with a plan."""


def request(seed: int, options: dict[str, object] | None = None, **fields: Any) -> Request:
    base = {"prompt": prompt(seed, 4), "method": "outline", "max_new_tokens": 40}
    base |= {"logit_bias": {LINE: 2.0}, "options": {**OPTIONS, **(options or {})}}
    return Request(**{**base, **fields})


def generate(seed: int, options: dict[str, object] | None = None, **fields: Any) -> Completion:
    engine = contract_engine(ends=False)
    completion = engine.generate(request(seed, options, **fields))
    assert_no_page_is_lost(engine)
    return completion


def continued(tokens: list[int], count: int) -> list[int]:
    """What the network says by itself, greedily."""
    plain = Request(prompt=tokens, max_new_tokens=count, logit_bias={LINE: 2.0})
    return contract_engine(ends=False).generate(plain).tokens


def encode(text: str) -> list[int]:
    return letters().encode(text, add_special=False)


def until(tokens: list[int], over: Any) -> list[int]:
    """The first tokens, up to the one with which it is over."""
    for count in range(1, len(tokens)):
        if over(letters().decode(tokens[:count])):
            return tokens[:count]
    return tokens


def lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if re.sub(r"^(\d+[.:]|\*)", "", line).strip(" .:*")]


def plan_is_over(text: str) -> bool:
    apart = re.search(r"\S\n\n+[^\s\d*(-]", text)
    return bool(apart) or len(lines(text)) > 3


def expected(seed: int) -> tuple[str, int, list[int]]:
    """The text, and how many tokens plan and parts have, one after the other."""
    before = [*prompt(seed, 4), *encode("1.")]
    plan = until(continued(before, 16), plan_is_over)
    text = letters().decode(plan)
    points = lines(re.split(r"(?<=\S)\n\n+(?=[^\s\d*(-])", text)[0])[:3]
    shown, counts = "", []
    for point in points:
        heading = "**" + point.rstrip(".:") + "**\n"
        written = continued([*before, *plan, *encode("\n\n"), *encode(heading)], 7)
        part = until(written, lambda text: "\n\n" in text.lstrip())
        counts.append(len(part))
        shown += "\n\n" * bool(shown) + heading + letters().decode(part).rstrip()
    return shown, len(plan), counts


@pytest.mark.parametrize("seed", PLANNED)
def test_parts_are_written_as_if_each_were_alone(seed: int) -> None:
    found = generate(seed)
    text, num_plan, counts = expected(seed)
    assert len(counts) >= 2 and found.text == text
    assert found.report.num_forward_passes == num_plan + max(counts)
    assert found.finish_reason == "stop" and not found.report.exact
    assert not found.report.notes
    # Headings are given, the rest is what the network said.
    by_itself = [entry for entry in found.trace if entry.probability < 1]
    assert 0 < len(by_itself) <= sum(counts)


def test_what_is_first_streams_while_later_parts_are_written() -> None:
    events = [e for e in contract_engine(ends=False).stream(request(12)) if isinstance(e, Event)]
    pieces = [event.tokens for event in events if event.tokens]
    assert len(pieces) > 4 and events[-1].completion is not None
    assert [t for piece in pieces for t in piece] == events[-1].completion.tokens
    # All of the second part comes at once: it was written beside the first.
    assert letters().decode([*pieces[-2], *pieces[-1]]) == "\n\n**mxxxx**\nxBx88"


@pytest.mark.parametrize("limit", [1, 9, 20])
def test_the_text_is_cut_at_the_limit(limit: int) -> None:
    whole, cut = generate(12), generate(12, max_new_tokens=limit)
    assert cut.tokens == whole.tokens[:limit] and cut.finish_reason == "length"
    assert cut.report.num_forward_passes <= whole.report.num_forward_passes


def test_without_a_plan_the_text_is_written_from_left_to_right() -> None:
    found = generate(0, {"plan_length": 1})
    assert found.tokens == continued(prompt(0, 4), 40)
    assert "no plan" in found.report.notes[0]


def test_depth_plans_the_points_of_a_plan() -> None:
    options = {"depth": 2, "inner_plan_lead": "\n{number}:\n"}
    found = generate(12, options, max_new_tokens=200)
    flat = generate(12, max_new_tokens=200)
    heads = [re.findall(r"\*\*\w+\*\*", text) for text in (flat.text, found.text)]
    assert set(heads[0]) < set(heads[1]) and len(heads[1]) > len(heads[0])
    assert found.text.startswith(heads[0][0])


def test_min_new_tokens_holds_for_every_part() -> None:
    end = encode("6")[0]
    short, long = (
        generate(44, {"part_length": 4}, stop_tokens=[end], min_new_tokens=count)
        for count in (0, 9)
    )
    assert not short.report.notes and not long.report.notes
    assert len(long.tokens) >= 9 and len(long.tokens) > len(short.tokens)


@pytest.mark.parametrize(
    ("plan", "points", "is_over"),
    [
        (" Beds.\n2. **Light**\n3) Air:\n", ["Beds", "Light", "Air"], False),
        ("one\n\n2. two\n\n3. three\n\nThis is", ["one", "two", "three"], True),
        ("one\n- two\n• three\n* four", ["one", "two", "three", "four"], False),
        ("(1) one\n(2) two\n\n\nThe end\n3. no", ["one", "two"], True),
        ("1.1. one\n\n\n", ["one"], False),
        ("\n\n", [], False),
        ("", [], False),
        ("2020 was dry\n12 cats", ["2020 was dry", "12 cats"], False),
    ],
)
def test_lists_of_all_sorts_are_plans(plan: str, points: list[str], is_over: bool) -> None:
    assert _points(plan) == (points, is_over)


@pytest.mark.parametrize("options", [{}, {"depth": 2, "inner_plan_lead": "\n{number}:\n"}])
def test_what_is_admitted_fits(options: dict[str, object]) -> None:
    """Even the smallest cache that it is admitted to holds all plans and parts."""
    num_planned = 0
    for seed, length in itertools.product(PLANNED, (1, 40)):
        wanted = request(seed, options, max_new_tokens=length)
        with pytest.raises(PoolTooSmall, match=r"and \d+ more that outline works on") as caught:
            contract_engine(ends=False, cache_tokens=64).generate(wanted)
        (more,) = map(int, re.findall(r"and (\d+) more", str(caught.value)))
        least = -(-(4 + length + more) // 16) * 16
        found = contract_engine(ends=False, cache_tokens=least).generate(wanted)
        assert found.tokens == contract_engine(ends=False).generate(wanted).tokens
        num_planned += not found.report.notes
        with pytest.raises(PoolTooSmall):
            contract_engine(ends=False, cache_tokens=least - 16).generate(wanted)
    assert num_planned


def test_refusals() -> None:
    with pytest.raises(InvalidRequest, match="outline needs a tokenizer, and tiny was loaded"):
        tiny_engine().generate(Request(prompt=[1], method="outline"))
    assert "outline" not in tiny_engine().usable_methods
    assert "outline" in contract_engine().usable_methods
    with pytest.raises(InvalidRequest, match="beside each other and cannot follow a guide; use"):
        generate(3, guide=Guide.regex("a"))
    with pytest.raises(InvalidRequest, match="points must be an integer from 2 to 64, got 1"):
        generate(3, {"points": 1})
