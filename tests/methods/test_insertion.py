"""Insertion against a plain loop over dense passes, and what requests may ask of it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from tests.methods.encoder_decoders import (
    MASK,
    START,
    encode,
    hidden,
    mask_filler,
    source,
)
from tests.tiny import (
    END,
    assert_no_page_is_lost,
    run_out,
    tiny_encoder_decoder_config,
    tiny_engine,
)

from anyorder.core.errors import InvalidRequest, UnsupportedMethod
from anyorder.core.method import TextRules
from anyorder.core.request import Completion, Guide, Request
from anyorder.engine.engine import Engine
from anyorder.methods.insertion import _pick, _Text, _Token, _within
from anyorder.model.encoder_decoder import EncoderDecoder
from anyorder.model.loaded import LoadedModel
from anyorder.sampling.windows import compatible

COUNTS = 6


@functools.cache
def editor(
    *, ends: bool = False, banned: tuple[int, int] | None = None, nothing: float = -1.0
) -> LoadedModel:
    """Fills masks from a source, and edits: half of the tokens do not belong, and about one is
    missing behind each."""
    rules = TextRules(start_tokens=(START,), banned=(banned,) if banned else ())
    config = tiny_encoder_decoder_config(
        text_rules=rules, insertion_classes=COUNTS, tied_embeddings=False
    )
    model = mask_filler(config, ends=ends)
    network: Any = model.network
    generator = torch.Generator().manual_seed(1)
    for parameter in network.edit_head.parameters():
        parameter.normal_(0.0, 0.25, generator=generator)
    network.edit_head.insertion.bias.copy_(torch.tensor([nothing, 1.5, 1.0, 0.5, 0.0, 0.0]))
    network.edit_head.deletion.bias.fill_(0.0)
    return model


def generate(tokens: list[int], engine: Engine | None = None, **fields: Any) -> Completion:
    engine = engine or tiny_engine(model=editor())
    base = {
        "prompt": tokens,
        "method": "insertion",
        "max_new_tokens": 200,
        "options": {"iterations": 4},
    }
    completion = engine.generate(Request(**{**base, **fields}))
    assert_no_page_is_lost(engine)
    return completion


# ------------------------------------------------------------------------------------ the loop
def naive(tokens: list[int], iterations: int) -> tuple[list[int], list[float], int]:
    """The paper's loop with a pass for each question: text, log-probabilities and how many of the
    passes saw something new."""
    network: Any = editor().network
    memory = encode(network, tokens)

    def edits(text: list[int]) -> Any:
        states = hidden(network, memory, [START, *text])
        return network.edits(states, torch.cat((states[1:], 0 * states[:1])))

    text: list[int] = []
    scores: list[float] = []
    seen: list[list[int]] = []
    for _ in range(iterations):
        before = list(text)
        seen.append(list(text))
        wrong = edits(text)[1][1:] > 0
        scores = [score for score, bad in zip(scores, wrong, strict=True) if not bad]
        text = [token for token, bad in zip(text, wrong, strict=True) if not bad]
        if wrong.any():
            seen.append(list(text))
        counts = edits(text)[0].argmax(-1).tolist()
        new, new_scores = [MASK] * counts[0], [0.0] * counts[0]
        for token, score, count in zip(text, scores, counts[1:], strict=True):
            new += [token, *[MASK] * count]
            new_scores += [score, *[0.0] * count]
        text, scores = new, new_scores
        if MASK in text:
            seen.append(list(text))
            logits = network.logits(hidden(network, memory, [START, *text]))[1:]
            logits[:, MASK] = -torch.inf
            values, ids = logits.log_softmax(-1).max(-1)
            masked = [token == MASK for token in text]
            text = [int(i) if m else t for i, m, t in zip(ids, masked, text, strict=True)]
            scores = [float(v) if m else s for v, m, s in zip(values, masked, scores, strict=True)]
        if text == before:
            break
    return text, scores, len(seen)


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_it_is_the_papers_loop(iterations: int) -> None:
    lengths = set()
    for seed in range(6):
        expected, scores, num_passes = naive(source(seed), iterations)
        found = generate(source(seed), options={"iterations": iterations})
        assert found.tokens == expected and expected
        assert found.logprobs == pytest.approx(scores, abs=1e-5)
        assert found.report.passes_by_role == {"encoder": 1, "target": num_passes}
        assert found.finish_reason == "stop"
        lengths.add(len(expected))
    assert len(lengths) > 1


def test_a_penalty_is_taken_off_inserting_nothing() -> None:
    """As if the network had thought so much less of it."""
    reluctant = tiny_engine(model=editor(nothing=15.0))
    options: dict[str, Any] = {"iterations": 4}
    for seed in range(4):
        expected = generate(source(seed), options=options)
        found = generate(source(seed), reluctant, options={**options, "penalty": 16.0})
        assert found.tokens == expected.tokens
        assert len(generate(source(seed), reluctant, options=options).tokens) == 1


def test_it_stops_when_nothing_changes() -> None:
    """Nothing is wrong, and nothing missing but behind the prompt of an empty text."""
    model = editor()
    network = EncoderDecoder.random(
        model.network.config,
        seed=0,
        dtype=torch.float64,
        spread=0.4,  # type: ignore[attr-defined]
    )
    network.edit_head.deletion.bias.fill_(-1e3)
    network.edit_head.insertion.weight.zero_()
    network.edit_head.insertion.bias.zero_()[0] = 1e3
    engine = tiny_engine(model=dataclasses.replace(model, network=network))
    found = generate(source(0), engine, min_new_tokens=4)
    assert len(found.tokens) == 4
    assert found.report.passes_by_role == {"encoder": 1, "target": 3}
    assert len(generate(source(0), engine).tokens) == 1  # no text is empty


# --------------------------------------------------------------------------------- its lengths
def test_counts_are_drawn_from_their_distribution() -> None:
    table = torch.tensor([0.5, 0.1, 0.4]).log().tolist()
    for temperature in (1.0, 0.5):
        drawn = Counter(_pick(table, temperature, (i + 0.5) / 1000) for i in range(1000))
        expected = (torch.tensor(table) / temperature).softmax(-1).tolist()
        for number, share in enumerate(expected):
            assert drawn[number] == pytest.approx(1000 * share, abs=1.01)
    assert _pick(table, 0.0, 0.9) == 0


def test_counts_are_changed_where_it_costs_least() -> None:
    """Against trying all, for tables that fall ever faster: those have no better way round."""
    generator = torch.Generator().manual_seed(0)
    for trial in range(20):
        slopes = torch.randn(3, 9, generator=generator).sort(-1, descending=True).values
        tables = torch.cat((torch.zeros(3, 1), slopes.cumsum(-1)), 1).tolist()
        counts = [_pick(table, 0.0, 0.0) for table in tables]
        for goal in (trial % 4, trial % 10):
            found = _within(counts, tables, goal, goal)
            assert sum(found) == goal

            def value(numbers: tuple[int, ...] | list[int], tables: list[Any] = tables) -> float:
                return sum(table[n] for table, n in zip(tables, numbers, strict=True))  # type: ignore[no-any-return]

            every = [n for n in itertools.product(range(10), repeat=3) if sum(n) == goal]
            assert value(found) == pytest.approx(max(map(value, every)))
        assert _within(counts, tables, 0, 27) == counts
    # Beyond a table's end the last number stands for all higher ones.
    assert sum(_within([0], [[0.0, -1.0]], 7, 7)) == 7


def test_texts_are_as_long_as_the_request_allows() -> None:
    for seed in range(4):
        free = len(generate(source(seed)).tokens)
        shorter = generate(source(seed), max_new_tokens=max(1, free - 2))
        assert len(shorter.tokens) <= max(1, free - 2)
        longer = generate(source(seed), min_new_tokens=free + 5, max_new_tokens=free + 5)
        assert len(longer.tokens) == free + 5 and longer.finish_reason == "length"


def test_end_tokens() -> None:
    free = generate(source(3)).tokens
    stopped = generate(source(3), stop_tokens=[free[3]])
    assert stopped.tokens == free[: free.index(free[3]) + 1]
    assert stopped.finish_reason == "stop"
    engine, num_early = tiny_engine(model=editor(ends=True)), 0
    for seed in range(8):
        fields: dict[str, Any] = {"temperature": 2.5, "seed": seed, "max_new_tokens": 40}
        num_early += len(generate(source(seed), engine, **fields).tokens) < 15
        held = generate(source(seed), engine, min_new_tokens=15, **fields).tokens
        assert END not in held[:14] and len(held) >= 15
    assert num_early


# ------------------------------------------------------------------------------- what it keeps
@pytest.mark.parametrize("seed", range(4))
def test_a_canvas_keeps_its_tokens_and_the_lengths_between_them(seed: int) -> None:
    canvas = [None, None, 7, None, None, None, 9, 11, None]
    found = generate(source(seed), canvas=canvas, max_new_tokens=None)
    assert len(found.tokens) == 9 and found.finish_reason == "length"
    assert [found.tokens[place] for place in (2, 6, 7)] == [7, 9, 11]
    assert [found.trace[place].step for place in (2, 6, 7)] == [0, 0, 0]
    assert MASK not in found.tokens
    once = generate(source(seed), canvas=canvas, max_new_tokens=None, options={"iterations": 1})
    assert once.report.passes_by_role["target"] <= 4


def test_bans_hold_among_tokens_that_become_neighbours() -> None:
    num_repeating, deletions = 0, 0
    short = {"max_new_tokens": 30}
    for seed in range(5):
        free = generate(source(seed), history=True, **short)
        pairs = list(itertools.pairwise(free.tokens))
        num_repeating += len(set(pairs)) < len(pairs)
        deletions += any(entry.token is None for entry in free.choices[0].history)
        kept = generate(source(seed), no_repeat_ngram=1, **short)
        assert len(set(kept.tokens)) == len(kept.tokens)
        kept = generate(source(seed), no_repeat_ngram=2, **short)
        assert len(set(itertools.pairwise(kept.tokens))) == len(kept.tokens) - 1
        for pair in set(pairs[:2]):
            engine = tiny_engine(model=editor(banned=pair))
            assert pair not in itertools.pairwise(generate(source(seed), engine, **short).tokens)
    assert num_repeating and deletions


class Bench:
    """As much of a context as deletions ask for; 7 8 and 1 9 are banned, 1 ends the prompt."""

    request = Request(prompt=[1])
    canvas = None
    max_new_tokens = 9

    def compatible(self, *given: Any, fresh: bool) -> list[int]:
        banned = [(7, 8), (1, 9)]
        return compatible([1], *given, banned=banned, no_repeat_ngram=0, fresh=fresh)

    def preview(self, *given: Any) -> None:
        """Nobody looks."""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([(7, -1.0), (5, 0.0), (8, -2.0)], [7]),
        ([(7, -2.0), (5, 0.0), (8, -1.0)], [8]),
        ([(5, 0.0), (9, -1.0), (6, -2.0)], [6]),
        ([(6, -1.0), (5, 0.0), (9, -1.0)], [6, 9]),
        ([(7, -1.0), (5, 0.0), (8, -1.5), (6, -2.0)], [7, 6]),
    ],
)
def test_what_may_not_stand_where_it_comes_to_stand_is_taken_out(
    before: list[tuple[int, float]], after: list[int]
) -> None:
    """5 does not belong."""
    text = _Text(Bench(), None)  # type: ignore[arg-type]
    text._tokens = [_Token(id=token, logprob=logprob) for token, logprob in before]
    assert text.delete([0.9 if token == 5 else 0.1 for token, _ in before])
    assert text.line == after


def test_the_history_tells_of_insertions_and_deletions() -> None:
    num_taken_back = 0
    num_steps = set()
    for seed in range(6):
        found = generate(source(seed), history=True, logprobs=2, max_new_tokens=40)
        (choice,) = found.choices
        board: dict[int, int | None] = {}
        for entry in choice.history:
            num_taken_back += entry.token is None and board.get(entry.place) is not None
            board[entry.place] = entry.token
        line = [board[place] for place in sorted(board)]
        assert line == [*choice.tokens, *[None] * (len(line) - len(choice.tokens))]
        steps = [entry.step for entry in choice.trace]
        assert max(steps) <= found.report.num_forward_passes
        num_steps.add(len(set(steps)))
        assert all(len(entry.alternatives) == 2 for entry in choice.trace)
        # A token is told with its probability in the pass that it came from.
        assert all(entry.alternatives[0][0] == entry.token for entry in choice.trace)
    assert num_taken_back and len(num_steps) > 1


def test_draws_depend_on_the_seed_alone() -> None:
    texts = [generate(source(0), temperature=1.0, seed=seed).tokens for seed in (1, 2, 1)]
    assert texts[0] == texts[2] != texts[1]
    assert len({len(text) for text in texts}) == 2


def test_company_chunks_and_preemption_change_nothing() -> None:
    requests = [
        Request(
            prompt=source(seed, length),
            method=method,
            max_new_tokens=12,
            temperature=seed % 2,
            n=1 + seed % 2,
            options=options,
        )
        for seed, (method, options) in enumerate(
            (("insertion", {"iterations": 2}), ("insertion", {}), ("mask_predict", {}))
        )
        for length in (3, 20)
    ]
    expected = [tiny_engine(model=editor()).generate(request) for request in requests]
    for changes in ({}, {"max_batch_tokens": 7}, {"cache_tokens": 192}):
        engine = tiny_engine(model=editor(), **changes)
        handles = [engine.submit(request) for request in requests]
        run_out(engine, range(2, 1000, 5))
        for handle, alone in zip(handles, expected, strict=True):
            for choice, other in zip(handle.result().choices, alone.choices, strict=True):
                assert choice.tokens == other.tokens
        assert_no_page_is_lost(engine)


def test_refusals() -> None:
    with pytest.raises(InvalidRequest, match=r"insertion cannot keep to a guide, .* mask_predict"):
        generate(source(0), guide=Guide.regex("a"))
    model = editor()
    plain = dataclasses.replace(model.abilities, num_insertions=0)
    engine = tiny_engine(model=dataclasses.replace(model, abilities=plain))
    with pytest.raises(UnsupportedMethod, match="insertion needs edit heads; tiny has none"):
        generate(source(0), engine)
    rules = dataclasses.replace(model.abilities.text_rules, first_token=5)
    forced = dataclasses.replace(model.abilities, text_rules=rules)
    engine = tiny_engine(model=dataclasses.replace(model, abilities=forced))
    with pytest.raises(UnsupportedMethod, match="texts that may begin and end with any token"):
        generate(source(0), engine)
