"""Outline's feedback against a twin that scores by dense passes and writes by itself, greedily."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Mapping
from math import inf
from typing import Any

import pytest
import torch
from tests.methods.test_contract import LINE, contract_engine, contract_model, letters, prompt
from tests.tiny import (
    assert_no_page_is_lost,
    run_out,
    tiny_config,
    tiny_encoder_decoder,
    tiny_model,
)

from anyorder.core.batch import dense_batch
from anyorder.core.errors import PoolTooSmall, UnsupportedMethod, UserError
from anyorder.core.request import Completion, Request
from anyorder.engine.engine import Engine
from anyorder.engine.roles import open_role
from anyorder.model.loaded import LoadedModel
from anyorder.model.transformer import Transformer

BIAS = 1.5
PART_LENGTH = 9
OPTIONS = {
    "points": 4,
    "plan_length": 24,
    "part_length": PART_LENGTH,
    "plan_lead": "1.",
    "heading": "*{point}*:",
}
SEEDS = [3, 12, 19, 47, 97]
"""Of prompts that the tiny network goes on from with a plan, and parts that it can better."""
HEADING = re.compile(r"(?:^|\n\n)(\*[^*\n]+\*:)")


# ----------------------------------------------------------------------------------- what is tested
def request(seed: int, options: Mapping[str, object], /, **fields: Any) -> Request:
    base: dict[str, Any] = {"prompt": prompt(seed, 4), "method": "outline", "max_new_tokens": 90}
    base |= {"logit_bias": {LINE: BIAS}, "options": {**OPTIONS, **options}}
    return Request(**{**base, **fields})


def generate(
    seed: int,
    options: Mapping[str, object],
    /,
    *,
    engine: Engine | None = None,
    **fields: Any,
) -> Completion:
    engine = engine or contract_engine(ends=False)
    completion = engine.generate(request(seed, options, **fields))
    assert_no_page_is_lost(engine)
    return completion


# ----------------------------------------------------------------------------------------- the twin
def dense(model: LoadedModel, tokens: list[int]) -> torch.Tensor:
    """Log-probabilities behind every token, by one pass without a cache."""
    network = model.network
    with torch.inference_mode():
        hidden = network.hidden(dense_batch(torch.tensor([tokens])), None)  # type: ignore[arg-type]
        return network.logits(hidden).log_softmax(dim=-1)


def mean_logprob(model: LoadedModel, before: list[int], part: list[int]) -> float:
    rows = dense(model, [*before, *part])[len(before) - 1 : -1]
    return float(rows[range(len(part)), part].sum()) / len(part)


def score(
    model: LoadedModel, start: list[int], text: str, heading: str, part: str, contrast: float
) -> float:
    """As the docstring of sampling/coherence.py says it."""
    if not part:
        return -inf
    own = encode(part)
    there = mean_logprob(model, [*start, *encode(text), *encode(heading)], own)
    return there - contrast * mean_logprob(model, [*start, *encode(heading)], own)


@functools.cache
def written(before: tuple[int, ...], most: int) -> str:
    """How the network goes on, greedily."""
    tokens = list(before)
    for count in range(most):
        row = dense(contract_model(ends=False), tokens)[-1].clone()
        row[LINE] += BIAS
        tokens.append(int(row.argmax()))
        said = letters().decode(tokens[len(before) :])
        if "\n\n" in said.lstrip() or count == most - 1:
            return said.rstrip()
    return ""


def encode(text: str) -> list[int]:
    return letters().encode(text, add_special=False)


class Twin:
    """The rounds, on texts."""

    def __init__(self, seed: int, text: str, *, judge: int | None, contrast: float) -> None:
        found = HEADING.split(text)
        assert found[0] == ""
        self.headings, self.parts = found[1::2], found[2::2]
        self.start = prompt(seed, 4)
        self.model = contract_model(ends=False) if judge is None else tiny_model(judge)
        self.contrast = contrast
        self.log: list[str] = []

    def before(self, index: int) -> str:
        """All up to a part's heading."""
        pairs = zip(self.headings[:index], self.parts[:index], strict=True)
        return "".join(heading + part + "\n\n" for heading, part in pairs)

    @property
    def text(self) -> str:
        return self.before(len(self.parts)).removesuffix("\n\n")

    def value(self, index: int, part: str, text: str) -> float:
        return score(self.model, self.start, text, self.headings[index], part, self.contrast)

    def run(self, rounds: int, weakest: int, threshold: float | None) -> None:
        tried, first = set(), 1
        for number in range(1, rounds + 1):
            befores = [self.before(index) for index in range(len(self.parts))]
            scores = {
                i: self.value(i, self.parts[i], befores[i]) for i in range(first, len(self.parts))
            }
            if not scores:
                return
            line = f"round {number} of feedback: part "
            line += ", ".join(f"{i + 1} scores {value:.3f}" for i, value in scores.items())
            weak = sorted(scores, key=lambda index: scores[index])
            weak = [i for i in weak if threshold is None or scores[i] < threshold]
            first = min(weak, default=len(self.parts))  # no round comes back to those before it
            weak = [i for i in weak if (i, befores[i]) not in tried][:weakest]
            if not weak:
                self.log.append(f"{line}; none was written again.")
                return
            for i in sorted(weak):
                tried.add((i, befores[i]))
                behind = [*self.start, *encode(befores[i]), *encode(self.headings[i])]
                other = written(tuple(behind), PART_LENGTH)
                value = self.value(i, other, befores[i])
                is_better = value > scores[i]
                if is_better:
                    self.parts[i] = other
                line += f"; {i + 1} written again scores {value:.3f} and is "
                line += "kept" if is_better else "dropped"
            self.log.append(f"{line}.")


CASES = [
    {"rounds": 1, "weakest": 1},
    {"rounds": 1},
    {"rounds": 4, "weakest": 1, "contrast": 1.0},
    {"rounds": 3, "weakest": 3, "contrast": 0.0},
    {"rounds": 3, "threshold": -1.0},
    {"rounds": 2, "judge": "draft"},
    {"rounds": 2, "judge": "draft", "contrast": 0.0},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_scores_rewrites_and_what_is_kept_are_the_twins(options: dict[str, Any]) -> None:
    kept = dropped = 0
    for seed in SEEDS:
        twin = Twin(
            seed,
            generate(seed, {}).text,
            judge=1 if "judge" in options else None,
            contrast=options.get("contrast", 0.5),
        )
        twin.run(options["rounds"], options.get("weakest", 2), options.get("threshold"))
        found = generate(seed, options)
        assert found.text == twin.text
        assert list(found.report.notes) == twin.log
        kept += str(twin.log).count("kept")
        dropped += str(twin.log).count("dropped")
    assert kept and (dropped or options["rounds"] == 1 or "threshold" in options)


def judged(completion: Completion) -> list[tuple[str, str]]:
    """Parts and their scores in the first round."""
    note = "".join(completion.report.notes[:1]).partition(";")[0]
    return re.findall(r"([\d.]+) scores (-?\d+\.\d+|-inf)", note)


@pytest.mark.parametrize("limit", [1, 12, 18, 25])
def test_only_what_is_shown_is_judged(limit: int) -> None:
    """A part that the limit cuts is judged by what is left of it, those behind it are not."""
    plain, found = (generate(47, {"rounds": n}, max_new_tokens=limit) for n in (0, 1))
    text = plain.text
    headings = list(HEADING.finditer(text))
    named = judged(found)
    assert len(named) == max(0, len(headings) - 1)
    for number, value in named:
        here = headings[int(number) - 1]
        (later,) = [other.start() for other in headings[int(number) :][:1]] or [len(text)]
        part, before = text[here.end() : later], text[: here.start(1)]
        expected = score(contract_model(ends=False), prompt(47, 4), before, here[1], part, 0.5)
        assert float(value) == pytest.approx(expected, abs=6e-4)
    assert len(found.tokens) <= limit
    if len(plain.tokens) == limit and not named:
        assert found.tokens == plain.tokens


def test_what_is_kept_has_its_own_probabilities() -> None:
    plain, found = generate(12, {}, logprobs=2), generate(12, {"rounds": 1}, logprobs=2)
    at = found.text.index("*:", found.text.index("\n\n")) + 2
    assert found.logprobs[:at] == plain.logprobs[:at] and found.text[at:] != plain.text[at:]
    part = found.tokens[at:]
    rows = dense(contract_model(ends=False), [*prompt(12, 4), *found.tokens])[4 + at - 1 : -1]
    assert found.logprobs[at:] == pytest.approx(rows[range(len(part)), part].tolist(), abs=1e-6)
    top = rows.topk(2).indices.tolist()
    (choice,) = found.choices
    told = [len(entry.alternatives) for entry in choice.trace]
    assert told[at:] == [2] * len(part) and len(top) == len(part)


def test_a_round_costs_two_passes_and_the_longest_rewrite() -> None:
    plain, found = generate(12, {}), generate(12, {"rounds": 1})
    (rewrite,) = re.findall(r"written again", found.report.notes[0])
    num_passes = found.report.num_forward_passes - plain.report.num_forward_passes
    assert rewrite and num_passes == 2 + PART_LENGTH
    judged = generate(12, {"rounds": 1, "judge": "draft"}).report
    # It reads the prompt, the text and the rewrite; the target reads the text to go on from it.
    assert judged.passes_by_role["draft"] == 3
    assert judged.passes_by_role["target"] == plain.report.num_forward_passes + 1 + PART_LENGTH


def test_a_rewrite_is_no_longer_than_is_shown_of_it() -> None:
    plain = generate(12, {})
    room = 3
    limit = plain.text.index("*:", plain.text.index("\n\n")) + 2 + room
    found = generate(12, {"rounds": 1}, max_new_tokens=limit)
    assert "2 written again" in found.report.notes[0] and len(found.tokens) <= limit
    assert found.report.num_forward_passes == plain.report.num_forward_passes + 2 + room


def test_what_is_settled_streams_before_the_rewriting() -> None:
    engine = contract_engine(ends=False)
    handle = engine.submit(request(97, {"rounds": 1, "weakest": 1}, max_new_tokens=60))
    times: list[tuple[int, str]] = []
    for tick in itertools.count():
        going_on = engine.tick()
        while handle.events:
            times += [(tick, handle.events.popleft().text)]
        if not going_on:
            break
    text = handle.result().text
    assert "".join(piece for _, piece in times) == text
    first, second, third = (match.start() for match in HEADING.finditer(text))
    ticks = [tick for tick, piece in times for _ in piece]
    # The second part is shown when the third is the weakest, and that when it is written again.
    assert "3 written again" in handle.result().report.notes[0]
    assert len(set(ticks[first:second])) > 3
    (shown,) = set(ticks[second:third])
    assert {ticks[-1]} == set(ticks[third:]) and ticks[-1] > shown + 2


def test_a_stop_string_ends_the_rounds() -> None:
    plain = generate(97, {"rounds": 1}, stop=["*:"])
    assert not plain.report.notes and plain.text == plain.text.partition("*:")[0]
    whole = generate(97, {"rounds": 1, "weakest": 1})
    word = whole.text[-3:]
    assert whole.text.count(word) == 1
    cut = generate(97, {"rounds": 1, "weakest": 1}, stop=[word])
    assert cut.text == whole.text[:-3] and cut.report.notes == whole.report.notes


def test_another_round_draws_anew_at_a_temperature() -> None:
    """Parts that lost are tried again behind the same text, with other random numbers."""
    said = set()
    for rounds in range(1, 5):
        options = {"rounds": rounds, "weakest": 1, "contrast": 0.0}
        notes = generate(12, options, temperature=1.0, seed=1).report.notes
        assert len(notes) == rounds
        said.add(re.findall(r"again scores (\S+) ", notes[-1])[0])
    assert len(said) == 4


def test_replays_show_what_stood_there() -> None:
    plain = generate(12, {})
    found = generate(12, {"rounds": 1}, history=True)
    (choice,) = found.choices
    last: dict[int, int | None] = {}
    drafts: dict[int, int | None] = {}
    for entry in choice.history:
        drafts.setdefault(entry.place, entry.token)
        last[entry.place] = entry.token
    first = min(drafts)
    assert [drafts[place] for place in sorted(drafts)][: len(plain.tokens) - first] == (
        plain.tokens[first:]
    )
    # Nothing is told of what is final, such as the first part.
    assert first == plain.text.index("\n\n")
    final = dict(enumerate(found.tokens))
    assert all(final.get(place) == token for place, token in last.items())
    assert len(found.tokens) != len(plain.tokens) or found.tokens != plain.tokens


@pytest.mark.parametrize("options", [{}, {"judge": "draft"}, {"contrast": 0.0, "weakest": 1}])
@pytest.mark.parametrize("depth", [1, 2])
def test_what_is_admitted_fits(options: dict[str, object], depth: int) -> None:
    """Even the smallest cache that it is admitted to holds what is written and judged at once."""
    inner = {"depth": depth, "inner_plan_lead": "\n{number}:\n", "points": 3, "plan_length": 16}
    wanted = request(47, {**inner, "rounds": 2, **options}, max_new_tokens=60)
    roomy = contract_engine(ends=False).generate(wanted)
    assert "written again" in roomy.report.notes[0]
    with pytest.raises(PoolTooSmall, match=r"and \d+ more that outline works on") as caught:
        contract_engine(ends=False, cache_tokens=64).generate(wanted)
    (more,) = map(int, re.findall(r"and (\d+) more", str(caught.value)))
    least = -(-(64 + more) // 16) * 16
    found = contract_engine(ends=False, cache_tokens=least).generate(wanted)
    assert found.tokens == roomy.tokens and found.report.notes == roomy.report.notes


def test_a_judge_whose_own_cache_is_too_small_is_refused_at_once() -> None:
    engine = contract_engine(ends=False)
    role = engine.roles["draft"]

    def resize(num_tokens: int) -> None:
        engine.roles["draft"] = open_role(
            "draft", role.network, role.abilities, num_cache_tokens=num_tokens
        )

    wanted = request(47, {"rounds": 1, "judge": "draft"}, max_new_tokens=60)
    resize(128)
    with pytest.raises(PoolTooSmall, match=r"up to (\d+) positions of the draft model's") as caught:
        engine.submit(wanted)
    (most,) = map(int, re.findall(r"up to (\d+)", str(caught.value)))
    # Without a judge of its own it needs none of that, and so much is enough.
    engine.submit(request(47, {"rounds": 1}, max_new_tokens=60))
    engine.submit(request(47, {"rounds": 0, "judge": "draft"}, max_new_tokens=60))
    resize(most)
    engine.submit(wanted)
    resize(most - 16)
    with pytest.raises(PoolTooSmall):
        engine.submit(wanted)


@pytest.mark.parametrize("judge", ["target", "draft"])
def test_company_chunks_and_preemption_change_nothing(judge: str) -> None:
    options = {"rounds": 2, "judge": judge}
    wanted = [
        request(47, options),
        request(12, options, temperature=0.9, n=2, seed=3),
        request(19, {**options, "depth": 2}, repetition_penalty=1.1),
        request(97, options, guidance_scale=1.3, negative_prompt=[5, 6, 7]),
    ]
    alone = [contract_engine(ends=False).generate(item) for item in wanted]
    for at, budget in ((range(3, 900, 5), 512), ((), 7)):
        engine = contract_engine(ends=False, max_batch_tokens=budget)
        handles = engine.submit_all([*wanted, Request(prompt=[5, 6], max_new_tokens=30)])
        run_out(engine, preempt_at=at)
        for handle, expected in zip(handles, alone, strict=False):
            found = handle.result()
            assert bool(found.report.num_preemptions) == bool(at)
            for choice, other in zip(found.choices, expected.choices, strict=True):
                assert choice.tokens == other.tokens
                assert choice.logprobs == pytest.approx(other.logprobs, abs=1e-6)
            assert set(found.report.notes) == set(expected.report.notes)
        assert_no_page_is_lost(engine)


def test_hierarchies_are_judged_part_by_part() -> None:
    options = {"depth": 2, "inner_plan_lead": "\n{number}:\n", "points": 3}
    plain = generate(47, options, max_new_tokens=200)
    found = generate(47, {**options, "rounds": 1, "contrast": 0.0}, max_new_tokens=200)
    named = judged(found)
    assert len(named) > 2 and any("." in number for number, _ in named)
    *_, last = HEADING.finditer(plain.text)
    model = contract_model(ends=False)
    value = score(
        model, prompt(47, 4), plain.text[: last.start(1)], last[1], plain.text[last.end() :], 0.0
    )
    assert float(named[-1][1]) == pytest.approx(value, abs=6e-4)


def test_a_text_behind_an_encoder_is_judged() -> None:
    """Forks of the decoder's text go on reading the source."""
    model = dataclasses.replace(tiny_encoder_decoder(ends=False), tokenizer=letters())
    controls: dict[str, Any] = {"temperature": 1.0, "logit_bias": {LINE: 2.5}}
    found = [
        generate(0, {"rounds": 2}, engine=Engine(model, cache_tokens=4096, **changes), **controls)
        for changes in ({}, {"max_batch_tokens": 9})
    ]
    assert "written again" in found[0].report.notes[0]
    assert found[0].text == found[1].text and found[0].report.notes == found[1].report.notes


def drafted(**abilities: Any) -> Engine:
    """With a second model that says this of itself."""
    model = tiny_model(1)
    own = dataclasses.replace(model.abilities, name="second", **abilities)
    return Engine(
        contract_model(ends=False),
        draft=dataclasses.replace(model, abilities=own),
        cache_tokens=4096,
    )


def test_a_judge_that_sees_too_little_judges_nothing() -> None:
    found = generate(12, {"rounds": 1, "judge": "draft"}, engine=drafted(context_length=90))
    assert found.text == generate(12, {}).text
    assert found.report.notes == (
        "the judge's context of 90 is too short for this request: no part is judged.",
    )


def test_refusals() -> None:
    def refused(engine: Engine, match: str, **options: object) -> None:
        with pytest.raises(UserError, match=match):
            engine.generate(request(12, {"rounds": 1, **options}))

    alone = Engine(contract_model(ends=False), cache_tokens=4096)
    refused(alone, "needs a draft model to judge by; the engine has target", judge="draft")
    refused(alone, "needs a critic model to judge by; the engine has target", judge="critic")
    refused(
        drafted(kind="medusa"),
        "a judge that runs by itself; second is a model's part",
        judge="draft",
    )
    refused(
        drafted(attention=frozenset({"bidirectional"})),
        "a judge with causal attention; second was trained with bidirectional",
        judge="draft",
    )
    refused(alone, "threshold must be a number from -1000 to 1000 or none", threshold=2000.0)
    refused(alone, "rounds must be an integer from 0 to 64", rounds=65)
    with pytest.raises(UnsupportedMethod, match="outline with these options needs a draft model"):
        alone.generate(request(12, {"judge": "draft"}))
    other = Transformer.random(tiny_config(vocabulary_size=60), seed=1, dtype=torch.float64)
    abilities = dataclasses.replace(tiny_model(1).abilities, name="other", vocabulary_size=60)
    with pytest.raises(UserError, match="the draft model other has 60 tokens and the target"):
        Engine(
            contract_model(ends=False),
            draft=LoadedModel(network=other, abilities=abilities, tokenizer=None),
        )
