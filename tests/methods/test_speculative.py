"""Speculative decoding: what may go wrong, what is reported, and that drafts really save passes.

That the text is plain decoding's is in test_exactness.py, test_contract.py and tests/drafters.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.model.small_tokenizers import byte_level
from tests.tiny import (
    CONTEXT,
    VOCABULARY,
    assert_no_page_is_lost,
    tiny_config,
    tiny_engine,
    tiny_model,
)

from anyorder.core.drafter import Draft, Drafter, DraftSession, Proposing
from anyorder.core.errors import (
    InvalidRequest,
    PoolTooSmall,
    RequestFailed,
    UnknownName,
    UnsupportedMethod,
    UserError,
)
from anyorder.core.method import Abilities, Context
from anyorder.core.request import Completion, Request
from anyorder.core.sequence import Sequence
from anyorder.engine.engine import Engine
from anyorder.model.loaded import LoadedModel
from anyorder.model.tokenizer import Tokenizer
from anyorder.model.tokenizer_source import TokenizerSource
from anyorder.model.transformer import Transformer

Make = Callable[[Seq[int], int], Draft]


@dataclass(frozen=True, kw_only=True)
class Scripted(Drafter):
    """Proposes what a function says."""

    make: Make
    nodes: int = 0

    def num_tokens(self, limit: int) -> int:
        return self.nodes or limit

    def open(self, context: Context, *, sequence: Sequence, coupled: bool) -> DraftSession:
        return _Session(self.make)


class _Session:
    def __init__(self, make: Make) -> None:
        self._make = make

    def expects(self) -> int:
        return 0

    def propose(self, text: Seq[int], limit: int) -> Proposing:
        return self._make(text, limit)
        yield

    def observe(self, text: Seq[int], *, features: Any, heads: Any) -> None:
        pass

    def close(self) -> None:
        pass


def speculate(engine: Engine, make: Make, **controls: Any) -> Completion:
    options = {"drafter": Scripted(make=make), "adaptive": False, **controls.pop("options", {})}
    request = Request(
        **{"prompt": [3, 4, 5], "max_new_tokens": 24, **controls},
        method="speculative",
        options=options,
    )
    return engine.generate(request)


def plain(engine: Engine, **controls: Any) -> Completion:
    return engine.generate(Request(**{"prompt": [3, 4, 5], "max_new_tokens": 24, **controls}))


def oracle(engine: Engine, **controls: Any) -> Make:
    """Always right."""
    answer = plain(engine, **controls)
    whole = [*answer.prompt_tokens, *answer.tokens]
    return lambda text, limit: Draft(tokens=whole[len(text) : len(text) + limit])


def wrong(text: Seq[int], limit: int) -> Draft:
    """Hardly ever right."""
    rng = random.Random(len(text))
    return Draft(tokens=[rng.randrange(VOCABULARY) for _ in range(limit)])


# ------------------------------------------------------------------------------------ what is saved
def test_right_drafts_save_passes_and_are_reported() -> None:
    engine = tiny_engine(model=tiny_model(ends=False))
    answer = speculate(engine, oracle(engine), options={"length": 5})
    assert answer.tokens == plain(engine).tokens
    report = answer.report
    # The prompt's pass makes one token, every check six.
    assert report.num_forward_passes == 1 + 4 and report.passes_by_role == {"target": 5}
    assert report.mean_accepted_length == pytest.approx((6 + 6 + 6 + 5) / 4)
    assert report.tokens_per_pass == pytest.approx(24 / 5)
    drafted = [entry.drafted for entry in answer.trace]
    assert drafted == [False, *([True] * 5 + [False]) * 3, *[True] * 4, False]
    assert report.exact


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_wrong_drafts_cost_passes_and_nothing_else(temperature: float) -> None:
    engine = tiny_engine(model=tiny_model(ends=False))
    controls: Any = {"temperature": temperature, "seed": 9, "logprobs": 3}
    answer, expected = speculate(engine, wrong, **controls), plain(engine, **controls)
    assert answer.tokens == expected.tokens
    assert answer.logprobs == pytest.approx(expected.logprobs)
    for one, other in zip(answer.trace, expected.trace, strict=True):
        assert dict(one.alternatives) == pytest.approx(dict(other.alternatives))
    assert answer.report.mean_accepted_length == pytest.approx(1.0, abs=0.3)
    assert_no_page_is_lost(engine)


def test_a_tree_may_hold_the_right_token_anywhere() -> None:
    engine = tiny_engine(model=tiny_model(ends=False))
    right = oracle(engine)

    def tree(text: Seq[int], limit: int) -> Draft:
        path = right(text, limit).tokens
        tokens, parents, parent = [], [], -1
        for token in path:  # wrong siblings before and after the right one
            tokens += [(token + 1) % VOCABULARY, token, (token + 2) % VOCABULARY]
            parents += [parent] * 3
            parent = len(tokens) - 2
        return Draft(tokens=tokens, parents=parents)

    options = {"length": 5, "drafter": Scripted(make=tree, nodes=15)}
    answer = speculate(engine, tree, options=options)
    assert answer.tokens == plain(engine).tokens
    assert answer.report.num_forward_passes == 5
    # What the tree left in the cache is a plain text's: a second turn may build on it.
    follow = [*answer.prompt_tokens, *answer.tokens, 7]
    again = engine.generate(Request(prompt=follow, max_new_tokens=4))
    fresh = tiny_engine(model=tiny_model(ends=False))
    assert again.report.num_cached_tokens == 16
    assert again.tokens == fresh.generate(Request(prompt=follow, max_new_tokens=4)).tokens


def test_the_history_tells_what_was_proposed_and_taken_back() -> None:
    engine = tiny_engine(model=tiny_model(ends=False))
    right = oracle(engine, max_new_tokens=6)

    def half_right(text: Seq[int], limit: int) -> Draft:
        first, *_, last = right(text, limit).tokens
        return Draft(tokens=[first, (last + 1) % VOCABULARY, last], parents=[-1, 0, -1])

    options = {"length": 2, "drafter": Scripted(make=half_right, nodes=3)}
    answer = speculate(engine, half_right, options=options, max_new_tokens=6, history=True)
    seen = [(entry.step, entry.place, entry.token) for entry in answer.choices[0].history]
    tokens = answer.tokens
    # After the prompt's pass the likelier path stands at places 1 and 2. The check takes the first
    # of it and its own token in place of the second; the next draft begins behind both.
    assert seen[:2] == [(1, 1, tokens[1]), (1, 2, (tokens[2] + 1) % VOCABULARY)]
    assert seen[2] == (2, 3, tokens[3])
    assert all(token is not None for _, _, token in seen)

    def all_wrong(text: Seq[int], limit: int) -> Draft:
        return Draft(tokens=[(token + 1) % VOCABULARY for token in right(text, limit).tokens])

    options = {"length": 2}
    answer = speculate(engine, all_wrong, options=options, max_new_tokens=4, history=True)
    seen = [(entry.step, entry.place, entry.token) for entry in answer.choices[0].history]
    one, two = (((token + 1) % VOCABULARY) for token in tokens[1:3])
    # The check's own token takes the first proposal's place, and the second is taken back.
    assert seen == [(1, 1, one), (1, 2, two), (2, 2, None), (2, 2, two)]
    assert speculate(engine, all_wrong, options=options, max_new_tokens=4).choices[0].history == ()


def test_drafts_of_all_lengths_share_a_pass_with_plain_requests() -> None:
    engine = tiny_engine(model=tiny_model(ends=False))
    right = oracle(engine)
    requests = [Request(prompt=[3, 4, 5], max_new_tokens=24)] + [
        Request(
            prompt=[3, 4, 5],
            max_new_tokens=24,
            method="speculative",
            options={"drafter": Scripted(make=right), "adaptive": False, "length": length},
        )
        for length in (1, 2, 5, 8)
    ]
    handles = engine.submit_all(requests)
    sizes = []
    while engine.tick():
        sizes.append({name: dict(counts) for (name, _), counts in engine._costs._latest.items()})
    assert len({tuple(handle.result().tokens) for handle in handles}) == 1
    # In some pass a token of the plain one ran beside drafts of four lengths.
    assert any(sorted(size["target"].values()) == [1, 2, 3, 6, 9] for size in sizes)


# -------------------------------------------------------------------------------- adaptive lengths
def test_drafts_that_never_help_are_given_up_and_that_is_said() -> None:
    engine = tiny_engine(model=tiny_model(ends=False))
    engine._costs.seconds = lambda role, layers, num, *, run: float(num)  # type: ignore[method-assign]
    answer = speculate(engine, wrong, max_new_tokens=120, options={"adaptive": True})
    assert answer.tokens == plain(engine, max_new_tokens=120).tokens
    (note,) = answer.report.notes
    assert note.startswith("speculation did not pay: ") and "steps went without a draft" in note
    assert answer.report.num_forward_passes > 110


def test_passes_that_cost_nothing_more_are_filled() -> None:
    engine = tiny_engine(model=tiny_model(ends=False))
    engine._costs.seconds = lambda role, layers, num, *, run: 1.0  # type: ignore[method-assign]
    right = oracle(engine, max_new_tokens=120)
    options = {"adaptive": True, "length": 16}
    answer = speculate(engine, right, max_new_tokens=120, options=options)
    assert not answer.report.notes and answer.report.num_forward_passes <= 10


def test_with_the_ratio_rule_time_does_not_decide() -> None:
    """A drawn draft's length decides what is drawn, so by default it is fixed."""
    engine = tiny_engine(draft=tiny_model(1))
    request = Request(
        prompt=[3, 4],
        max_new_tokens=24,
        temperature=1.0,
        method="speculative",
        options={"drafter": "draft_model", "acceptance": "ratio", "length": 3},
    )
    texts = []
    for cost in (1.0, 1000.0):
        engine._costs.seconds = lambda role, layers, num, *, run: cost * num  # type: ignore[method-assign] # noqa: B023
        texts.append(engine.generate(request).tokens)
    assert texts[0] == texts[1]


# ---------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize("token", [VOCABULARY, -1, 10**9])
def test_an_impossible_token_fails_its_request_alone(token: int) -> None:
    engine = tiny_engine()
    other = engine.submit(Request(prompt=[1, 2], max_new_tokens=8))
    with pytest.raises(RequestFailed, match=f"drafter test_speculative proposed token {token}"):
        speculate(engine, lambda text, limit: Draft(tokens=[1, token]))
    while engine.tick():
        pass
    assert len(other.result().tokens) <= 8
    assert_no_page_is_lost(engine)


def test_a_tree_larger_than_the_pool_is_refused_before_anything_runs() -> None:
    engine = tiny_engine(cache_tokens=64)
    options = {"drafter": Scripted(make=wrong, nodes=60)}
    with pytest.raises(PoolTooSmall, match=r"60 more that speculative works on.*cache of 64"):
        engine.generate(
            Request(prompt=[1, 2], max_new_tokens=8, method="speculative", options=options)
        )
    assert_no_page_is_lost(engine)


@pytest.mark.parametrize("length", [0, 65, -1, 1.5, "many"])
def test_lengths_out_of_range_are_refused(length: Any) -> None:
    with pytest.raises(InvalidRequest, match="length must be an integer from 1 to 64"):
        tiny_engine().generate(
            Request(prompt=[1], method="speculative", options={"length": length})
        )


def test_drafts_stay_inside_the_context_and_the_limit() -> None:
    engine = tiny_engine(model=tiny_model(ends=False))
    longest = 0
    hidden = Transformer.hidden

    def watched(self: Transformer, batch: Any, pool: Any = None) -> torch.Tensor:
        nonlocal longest
        longest = max(longest, int(batch.positions_N.max()))
        return hidden(self, batch, pool)

    prompt = [1 + i % 7 for i in range(CONTEXT - 10)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transformer, "hidden", watched)
        answer = speculate(engine, wrong, prompt=prompt, max_new_tokens=10, options={"length": 64})
    assert len(answer.tokens) == 10 and longest == CONTEXT - 2  # the last token is never run
    assert answer.tokens == plain(engine, prompt=prompt, max_new_tokens=10).tokens


def test_a_draft_model_with_a_short_context_sits_out() -> None:
    network = Transformer.random(tiny_config(context_length=16), seed=1, dtype=torch.float64)
    abilities = dataclasses.replace(tiny_model().abilities, name="short", context_length=16)
    engine = tiny_engine(draft=LoadedModel(network=network, abilities=abilities))
    options = {"drafter": "draft_model"}
    request = Request(prompt=[3, 4, 5], max_new_tokens=24, method="speculative", options=options)
    answer = engine.generate(request)
    assert answer.tokens == plain(engine).tokens
    assert answer.report.passes_by_role.keys() == {"target"}
    assert "the draft model's context of 16 is too short" in answer.report.notes[0]
    assert engine.generate(dataclasses.replace(request, max_new_tokens=8)).report.passes_by_role[
        "draft"
    ]


def test_a_drafter_that_is_not_there_is_refused() -> None:
    request = Request(prompt=[1], method="speculative", options={"drafter": "draft_model"})
    with pytest.raises(UnsupportedMethod, match="needs a draft model; the engine has target"):
        tiny_engine().generate(request)
    with pytest.raises(UnknownName, match="did you mean 'prompt_lookup'"):
        tiny_engine().generate(dataclasses.replace(request, options={"drafter": "promt_lookup"}))


@pytest.mark.parametrize("branches", ["a", "0", "17", "2,,x", "16,16,16"])
def test_bad_branches_are_refused(branches: str) -> None:
    options = {"drafter": {"name": "draft_model", "branches": branches}}
    with pytest.raises(InvalidRequest, match="branches"):
        tiny_engine(draft=tiny_model(1)).generate(
            Request(prompt=[1], method="speculative", options=options)
        )


def test_a_drafter_with_another_vocabulary_is_refused_naming_both() -> None:
    def model(name: str, size: int, tokenizer: Any = None) -> LoadedModel:
        abilities = Abilities(name=name, vocabulary_size=size, context_length=CONTEXT)
        network = Transformer.random(tiny_config(vocabulary_size=size), seed=0)
        return LoadedModel(network=network, abilities=abilities, tokenizer=tokenizer)

    with pytest.raises(UserError, match="small has 50 tokens and the target model big has 61"):
        Engine(model("big", 61), draft=model("small", 50), cache_tokens=64)
    backends = [byte_level(), byte_level()]
    backends[1].add_tokens(["extra"])
    tokenizers = [
        Tokenizer(TokenizerSource(backend=backend, vocabulary_size=430, control={}, added={}))
        for backend in backends
    ]
    big = model("big", 430, tokenizers[0])
    assert Engine(big, draft=model("same", 430, tokenizers[0]), cache_tokens=64).roles["draft"]
    with pytest.raises(UserError, match=r"of the draft model other is not token .* model big"):
        Engine(big, draft=model("other", 430, tokenizers[1]), cache_tokens=64)


def test_abort_in_the_middle_of_a_verification() -> None:
    engine = tiny_engine(model=tiny_model(ends=False), max_batch_tokens=4)
    options = {"drafter": Scripted(make=wrong), "adaptive": False, "length": 12}
    request = Request(prompt=[1, 2], max_new_tokens=40, method="speculative", options=options)
    handle = engine.submit(request)
    while True:
        engine.tick()
        (run,) = engine._runs[handle]
        # A draft of 12 and the token before it take four passes of four tokens.
        if run.jobs[0].request.outputs.accepted and 0 < run.jobs[0].num_done < 13:
            break
    engine.abort(handle)
    assert not engine.tick()
    assert_no_page_is_lost(engine)
