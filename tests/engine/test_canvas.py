"""The canvas contract: places made final in any order, fixed tokens, what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tests.cli.checkpoint import save_checkpoint
from tests.tiny import END, VOCABULARY, assert_no_page_is_lost, tiny_engine, tiny_model

from anyorder.core.attention import BIDIRECTIONAL
from anyorder.core.errors import InvalidRequest, RequestFailed, UnsupportedMethod
from anyorder.core.forward import (
    CanvasRows,
    Decoding,
    ForwardResult,
    Outputs,
    forward,
)
from anyorder.core.method import Context, Method
from anyorder.core.request import Completion, Event, Guide, Request
from anyorder.engine.engine import Engine
from anyorder.engine.handle import Handle
from anyorder.model.loaded import LoadedModel, load

MASK = 60
Script = Callable[[Context], Decoding]


class Scripted(Method):
    """Runs a function, and takes canvases."""

    fills_canvas: ClassVar[bool] = True
    script: ClassVar[Script]

    def decode(self, context: Context) -> Decoding:
        return type(self).script(context)


def scripted(script: Script, *, choices: bool = False) -> type[Scripted]:
    """A method that is no file of the package."""
    members = {"script": staticmethod(script), "makes_choices": choices}
    return type("Scripted", (Scripted,), members)


@pytest.fixture
def submit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Handle]:
    """`submit(engine, script, canvas=...)`: run a decoding loop on a request."""

    def run(engine: Engine, script: Script, *, choices: bool = False, **fields: Any) -> Handle:
        method = scripted(script, choices=choices)
        monkeypatch.setattr("anyorder.engine.admission._find", lambda name: method)
        request = Request(**{"prompt": [1, 2], "method": "autoregressive", **fields})
        handle = engine.submit(request)
        monkeypatch.undo()
        return handle

    return run


def masked_engine(**changes: Any) -> Engine:
    """The tiny model, said to know a mask token and two-way attention."""
    return tiny_engine(model=changes.pop("model", None) or masked_model(), **changes)


def masked_model(model: LoadedModel | None = None) -> LoadedModel:
    model = model or tiny_model()
    kinds = frozenset({"causal", "bidirectional"})
    abilities = dataclasses.replace(model.abilities, mask_token=MASK, attention=kinds)
    return dataclasses.replace(model, abilities=abilities)


def drain(engine: Engine, handle: Handle) -> tuple[Completion, list[Event]]:
    while engine.tick():
        pass
    assert_no_page_is_lost(engine)
    return handle.result(), list(handle.events)


def revealing(order: list[list[int]], tokens: dict[int, int] | None = None) -> Script:
    """Reveals these places, one list a pass; token 10 + place unless told."""

    def script(context: Context) -> Decoding:
        with context.sequence() as sequence:
            for places in order:
                yield from forward(sequence, context.prompt, 0)
                found = [(tokens or {}).get(place, 10 + place) for place in places]
                context.reveal(places, found, [-0.5] * len(places))

    return script


def test_streams_up_to_the_first_open_place(submit: Any) -> None:
    engine = masked_engine()
    handle = submit(engine, revealing([[3], [0, 1], [4], [2], [5]]), max_new_tokens=6)
    seen = []
    while not handle.done:
        engine.tick()
        seen.append([token for event in handle.events for token in event.tokens])
        handle.events.clear()
    assert [new for new in seen if new] == [[10, 11], [12, 13, 14], [15]]
    completion = handle.result()
    assert completion.tokens == [10, 11, 12, 13, 14, 15] and completion.finish_reason == "length"
    assert [entry.step for entry in completion.trace] == [2, 2, 4, 1, 3, 5]


def test_an_end_token_drops_what_lies_behind_it(submit: Any) -> None:
    order = [[5], [2], [0, 4], [1], [3]]
    completion, events = drain(
        engine := masked_engine(),
        submit(engine, revealing(order, {2: END}), max_new_tokens=6),
    )
    assert completion.tokens == [10, 11, END] and completion.finish_reason == "stop"
    assert [event.finish_reason for event in events] == [None, "stop", None]
    # Two end tokens: the first one counts, whichever came first.
    completion, _ = drain(
        engine, submit(engine, revealing(order, {2: END, 1: END}), max_new_tokens=6)
    )
    assert completion.tokens == [10, END]


def test_places_beyond_the_limit_are_dropped(submit: Any) -> None:
    engine = masked_engine()
    completion, _ = drain(engine, submit(engine, revealing([[7, 2, 1, 0]]), max_new_tokens=2))
    assert completion.tokens == [10, 11] and completion.finish_reason == "length"


@pytest.mark.parametrize("choices", [False, True])
@pytest.mark.parametrize("order", [[], [[0, 1]], [[0], [2, 3]]])
def test_a_text_that_its_method_leaves_unfinished_is_an_error(
    submit: Any, order: list[list[int]], choices: bool
) -> None:
    engine = masked_engine()
    other = engine.submit(Request(prompt=[1, 2, 3], max_new_tokens=5))
    handle = submit(engine, revealing(order), max_new_tokens=4, choices=choices)
    while engine.tick():
        pass
    with pytest.raises(RequestFailed, match="returned before its text was finished; a method"):
        handle.result()
    assert other.result().choices
    assert_no_page_is_lost(engine)


def test_a_search_may_find_fewer_texts_than_were_asked_for(submit: Any) -> None:
    def script(context: Context) -> Decoding:
        with context.sequence() as sequence:
            yield from forward(sequence, context.prompt, 0)
            context.emit([10, END], [-0.5, -0.5], choice=0)

    engine = masked_engine()
    completion, _ = drain(engine, submit(engine, script, choices=True, n=3, max_new_tokens=4))
    assert [choice.tokens for choice in completion.choices] == [[10, END]]


def test_a_place_is_revealed_once(submit: Any) -> None:
    engine = masked_engine()
    handle = submit(engine, revealing([[1], [1]]), max_new_tokens=3)
    while engine.tick():
        pass
    with pytest.raises(Exception, match="place 1 was revealed before"):
        handle.result()


def test_emit_takes_the_next_open_places(submit: Any) -> None:
    def script(context: Context) -> Decoding:
        with context.sequence() as sequence:
            yield from forward(sequence, context.prompt, 0)
            context.reveal([1], [31], [-1.0])
            context.emit([20, 22], [-1.0, -2.0])
            context.emit([24], [-3.0])

    engine = masked_engine()
    completion, _ = drain(engine, submit(engine, script, canvas=[None, None, None, 9, None]))
    assert completion.tokens == [20, 31, 22, 9, 24]
    assert completion.logprobs == [-1.0, -1.0, -2.0, 0.0, -3.0]


def test_fixed_tokens_are_part_of_the_answer(submit: Any) -> None:
    def script(context: Context) -> Decoding:
        assert context.canvas == (7, None, 8, None, 9) and context.max_new_tokens == 5
        with context.sequence() as sequence:
            yield from forward(sequence, context.prompt, 0)
            context.reveal([3, 1], [33, 31], [-1.0, -1.0])

    engine = masked_engine()
    handle = submit(engine, script, canvas=[7, None, 8, MASK, 9])
    completion, events = drain(engine, handle)
    assert [event.tokens for event in events] == [(7,), (31, 8, 33, 9), ()]
    assert completion.tokens == [7, 31, 8, 33, 9]
    assert [entry.step for entry in completion.trace] == [0, 1, 0, 1, 0]
    assert completion.trace[0].probability == 1.0


def test_each_choice_has_its_own_canvas(submit: Any) -> None:
    def one(context: Context) -> Decoding:
        with context.sequence() as sequence:
            yield from forward(sequence, context.prompt, 0)
            context.reveal([1], [10 + int(40 * context.chance("place", 3))], [0.0])

    def all_of_them(context: Context) -> Decoding:
        with context.sequence() as sequence:
            yield from forward(sequence, context.prompt, 0)
            for choice in (2, 0, 1):
                context.reveal([1], [20 + choice], [0.0], choice=choice, score=float(choice))

    engine = masked_engine()
    canvas = [5, None, 6]
    completion, _ = drain(engine, submit(engine, one, canvas=canvas, n=3))
    middles = [choice.tokens[1] for choice in completion.choices]
    assert len(set(middles)) > 1
    assert all([c.tokens[0], c.tokens[2]] == [5, 6] for c in completion.choices)
    again, _ = drain(engine, submit(engine, one, canvas=canvas, n=3))
    assert [choice.tokens for choice in again.choices] == [c.tokens for c in completion.choices]
    completion, events = drain(
        engine, submit(engine, all_of_them, choices=True, canvas=canvas, n=3)
    )
    assert [choice.tokens for choice in completion.choices] == [[5, 20 + i, 6] for i in range(3)]
    assert [choice.score for choice in completion.choices] == [0.0, 1.0, 2.0]
    assert [e.choice for e in events[:-1]] == [0, 1, 2, 2, 0, 1]


def test_chances_depend_on_seed_name_and_numbers(submit: Any) -> None:
    found: list[float] = []

    def script(context: Context) -> Decoding:
        found.extend(context.chance(name, i) for name in ("a", "b") for i in range(3))
        context.emit([1], [0.0])
        yield from ()

    engine = masked_engine()
    for seed in (0, 1, 0):
        drain(engine, submit(engine, script, max_new_tokens=1, seed=seed))
    assert found[:6] == found[12:] and len(set(found)) == 12
    assert all(0 <= number < 1 for number in found)


def test_end_at(submit: Any) -> None:
    def before(context: Context) -> Decoding:
        context.end_at(3)
        context.reveal([4, 2, 0, 1], [14, 12, 10, 11], [0.0] * 4)
        yield from ()

    def after(context: Context) -> Decoding:
        context.reveal([1, 0], [11, 10], [0.0] * 2)
        context.end_at(2)
        yield from ()

    def cut(context: Context) -> Decoding:
        context.reveal([3], [11], [0.0])
        context.end_at(2)
        yield from ()

    engine = masked_engine()
    completion, events = drain(engine, submit(engine, before, max_new_tokens=6))
    assert completion.tokens == [10, 11, 12] and completion.finish_reason == "stop"
    assert events[0].finish_reason == "stop"
    completion, events = drain(engine, submit(engine, after, max_new_tokens=6))
    assert completion.tokens == [10, 11] and completion.finish_reason == "stop"
    assert [event.finish_reason for event in events] == [None, "stop", None]
    handle = submit(engine, cut, max_new_tokens=6)
    while engine.tick():
        pass
    with pytest.raises(Exception, match="final behind"):
        handle.result()


def test_history_only_on_request(submit: Any) -> None:
    def script(context: Context) -> Decoding:
        with context.sequence() as sequence:
            yield from forward(sequence, context.prompt, 0)
            context.preview([1, 0], [30, 31])
            yield from forward(sequence, context.prompt, 0)
            context.preview([1], [None])
            context.reveal([0, 1], [10, 11], [0.0, 0.0])
            context.preview([0], [9])  # the text is over

    engine = masked_engine()
    completion, _ = drain(engine, submit(engine, script, max_new_tokens=2))
    assert completion.choices[0].history == ()
    completion, events = drain(engine, submit(engine, script, max_new_tokens=2, history=True))
    found = [(p.step, p.place, p.token) for p in completion.choices[0].history]
    assert found == [(1, 1, 30), (1, 0, 31), (2, 1, None)]
    assert [event.tokens for event in events] == [(10, 11), ()]
    assert completion.to_dict()["history"][0]["place"] == 1


def test_abort_in_the_middle_returns_all_pages(submit: Any) -> None:
    for num_ticks in range(4):
        engine = masked_engine()
        handle = submit(engine, revealing([[3], [0], [2], [1]]), max_new_tokens=4)
        for _ in range(num_ticks):
            engine.tick()
        engine.abort(handle)
        assert not engine.tick() and handle.done
        assert_no_page_is_lost(engine)


# ------------------------------------------------------------------------------------ what is drawn
def asking(text: list[int | None], places: list[int], **wishes: Any) -> tuple[Script, list[Any]]:
    """One two-way pass over prompt and canvas, answers for these places."""
    got: list[ForwardResult] = []

    def script(context: Context) -> Decoding:
        mask = context.abilities.mask_token
        assert mask is not None
        start = len(context.prompt)
        line = [*context.prompt, *(mask if token is None else token for token in text)]
        with context.sequence() as sequence:
            result = yield from forward(
                sequence,
                line,
                0,
                attention=BIDIRECTIONAL,
                rows=[start + place for place in places],
                outputs=Outputs(**wishes),
                canvas=CanvasRows(text=text, places=places),
            )
        got.append(result)
        context.emit([1] * context.max_new_tokens, [0.0] * context.max_new_tokens)

    return script, got


def ask(submit: Any, text: list[int | None], places: list[int], **fields: Any) -> ForwardResult:
    wishes = fields.pop("wishes", {})
    script, got = asking(text, places, **wishes)
    if "canvas" not in fields:
        fields["max_new_tokens"] = len(text)
    drain(engine := masked_engine(), submit(engine, script, **fields))
    return got[0]


def test_the_mask_token_is_impossible(submit: Any) -> None:
    text: list[int | None] = [None] * 4
    wishes = {"top": VOCABULARY, "entropy": True, "margin": True}
    result = ask(submit, text, [0, 1, 2, 3], wishes=wishes)
    for top, entropy in zip(result.top, result.entropies, strict=True):
        assert MASK not in dict(top) and len(top) == VOCABULARY - 1
        logprobs = torch.tensor([logprob for _, logprob in top], dtype=torch.float64)
        assert float(logprobs.exp().sum()) == pytest.approx(1, abs=1e-5)
        assert float(-(logprobs * logprobs.exp()).sum()) == pytest.approx(entropy, abs=1e-5)
    for scale in (0.0, 1.5):
        guided = ask(submit, text, [0, 1, 2, 3], guidance_scale=scale, wishes=wishes)
        assert MASK not in guided.tokens
    best = ask(submit, text, [0], logit_bias={MASK: 1e9}, temperature=1.0)
    assert best.tokens != [MASK]


def test_penalties_and_bans_see_the_whole_canvas(submit: Any) -> None:
    free = ask(submit, [None] * 4, [0, 1, 2, 3])
    token = free.tokens[1]
    behind: list[int | None] = [None, None, None, token]
    assert ask(submit, behind, [1], logit_bias={token: 50.0}).tokens == [token]
    for control in (
        {"presence_penalty": 60.0, "logit_bias": {token: 50.0}},
        {"frequency_penalty": 60.0, "logit_bias": {token: 50.0}},
        {"repetition_penalty": 900.0, "logit_bias": {token: 50.0}},
        {"no_repeat_ngram": 1, "logit_bias": {token: 50.0}},
    ):
        assert ask(submit, behind, [1], **control).tokens != [token]
        if "repetition_penalty" not in control:
            assert ask(submit, [None] * 4, [1], **control).tokens == [token]
    # (7, 8) stands on the canvas; beside another 8, 7 would repeat it.
    twice: list[int | None] = [7, 8, None, None, 8]
    bias = {7: 50.0}
    assert ask(submit, twice, [3], logit_bias=bias).tokens == [7]
    assert ask(submit, twice, [3], logit_bias=bias, no_repeat_ngram=2).tokens != [7]
    assert ask(submit, twice, [2], logit_bias=bias, no_repeat_ngram=2).tokens == [7]


def test_end_tokens_are_banned_by_place(submit: Any) -> None:
    bias = {END: 60.0}
    text: list[int | None] = [None, 5, None, None]
    ends = [END] * 3
    assert ask(submit, text, [0, 2, 3], logit_bias=bias).tokens == ends
    found = ask(submit, text, [0, 2, 3], logit_bias=bias, min_new_tokens=3).tokens
    assert [token == END for token in found] == [False, False, True]
    # A fixed token must not be cut off.
    found = ask(submit, text, [0, 2, 3], logit_bias=bias, canvas=text).tokens
    assert [token == END for token in found] == [False, True, True]


def test_draws_are_keyed_by_place(submit: Any) -> None:
    text: list[int | None] = [None] * 6
    draw: dict[str, Any] = {"temperature": 5.0, "seed": 4}
    whole = ask(submit, text, [0, 1, 2, 3, 4, 5], **draw).tokens
    assert ask(submit, text, [4, 1], **draw).tokens == [whole[4], whole[1]]
    assert len(set(whole)) > 2


def test_compatible_tokens(submit: Any, tmp_path: Path) -> None:
    model = masked_model(load(save_checkpoint(tmp_path / "checkpoint")))
    tokenizer = model.tokenizer
    assert tokenizer is not None
    engine = Engine(model, cache_tokens=512)
    word = tokenizer.encode("xyz", add_special=False)
    assert len(word) > 1
    found: list[list[int]] = []

    def script(context: Context) -> Decoding:
        size = len(word)
        canvas: list[int | None] = [None] * (size + 2)
        places = list(range(1, size + 1))
        found.append(context.compatible(canvas, places, word))
        found.append(context.compatible(canvas, places[::-1], word[::-1]))
        canvas[1] = word[0]
        found.append(context.compatible(canvas, places[1:], [word[1] + 1, *word[2:]]))
        context.emit([1] * context.max_new_tokens, [0.0] * context.max_new_tokens)
        yield from ()

    fields = {"prompt": "ab", "bad_words": ["xyz"], "max_new_tokens": 4}
    drain(engine, submit(engine, script, **fields))
    size = len(word)
    assert found == [list(range(size - 1)), list(range(size - 1)), list(range(size - 1))]


# -------------------------------------------------------------------------------- what is refused
def refusals() -> Iterator[tuple[dict[str, Any], str]]:
    yield {"canvas": [3, 4]}, "no place to fill in; mark one by None, or by <|mask|>"
    yield {"canvas": []}, "no place to fill in"
    yield {"canvas": [None, VOCABULARY]}, "canvas holds 61; token ids are 0 to 60"
    yield {"canvas": [None, -1]}, "canvas holds -1"
    yield {"canvas": [None, 2], "max_new_tokens": 3}, "2 places and max_new_tokens is 3; leave"
    yield {"canvas": [None, 2], "min_new_tokens": 3}, "min_new_tokens is 3, more than the 2 places"
    yield {"canvas": [END, None]}, "place 0 of the canvas is end token 0, which would cut off"
    yield {"canvas": [5, None], "stop_tokens": [5]}, "place 0 of the canvas is end token 5"
    yield {"canvas": [None] * 300}, "exceed tiny's context of 256"
    yield {"canvas": [None] * 200}, "more than the cache of 128 positions"
    yield {"canvas": "a <|mask|>"}, "a canvas given as text needs a tokenizer"
    yield {"guide": Guide.regex("a"), "max_new_tokens": 8}, "a guide needs a tokenizer"


@pytest.mark.parametrize(("fields", "message"), list(refusals()), ids=lambda value: str(value)[:30])
def test_refusals(submit: Any, fields: dict[str, Any], message: str) -> None:
    engine = masked_engine(cache_tokens=128)
    with pytest.raises(InvalidRequest, match="(?s)" + message.replace("|", r"\|")) as caught:
        submit(engine, revealing([]), **fields)
    assert "\n" not in str(caught.value)
    assert_no_page_is_lost(engine)


@pytest.mark.parametrize("canvas", [3, {"a": 1}, [1.5, None], [None, "a"], b"ab", [True, None]])
def test_a_canvas_is_text_or_ids(canvas: Any) -> None:
    with pytest.raises(InvalidRequest, match="canvas must be text with"):
        Request(prompt=[1], canvas=canvas)


def test_methods_that_cannot_fill_one_are_refused() -> None:
    with pytest.raises(UnsupportedMethod, match=r"autoregressive cannot fill in a canvas.* can: "):
        masked_engine().generate(Request(prompt=[1], canvas=[None, 3]))


def test_an_end_token_may_be_fixed_where_it_ends_nothing(submit: Any) -> None:
    engine = masked_engine()
    completion, _ = drain(
        engine, submit(engine, revealing([[1]]), canvas=[END, None, 3], ignore_end=True)
    )
    assert completion.tokens == [END, 11, 3] and completion.finish_reason == "length"
    completion, _ = drain(engine, submit(engine, revealing([[0]]), canvas=[None, END]))
    assert completion.tokens == [10, END] and completion.finish_reason == "stop"


def test_a_canvas_as_text(submit: Any, tmp_path: Path) -> None:
    model = load(save_checkpoint(tmp_path / "checkpoint"))
    assert model.tokenizer is not None
    engine = Engine(masked_model(model), cache_tokens=512)
    canvases: list[Any] = []

    def script(context: Context) -> Decoding:
        canvases.append(context.canvas)
        context.emit([5] * context.max_new_tokens, [0.0] * context.max_new_tokens)
        yield from ()

    drain(engine, submit(engine, script, prompt="ab", canvas="ab<|mask|> b<|mask:3|>"))
    first, second = (model.tokenizer.encode(text, add_special=False) for text in ("ab", " b"))
    assert canvases == [(*first, None, *second, None, None, None)]


def test_stop_strings_on_a_canvas(submit: Any, tmp_path: Path) -> None:
    model = load(save_checkpoint(tmp_path / "checkpoint"))
    assert model.tokenizer is not None
    engine = Engine(masked_model(model), cache_tokens=512)
    ids = model.tokenizer.encode("abcabd", add_special=False)
    cut = model.tokenizer.decode(ids).index("d")

    def script(context: Context) -> Decoding:
        places = list(range(len(ids)))[::-1]
        with context.sequence() as sequence:
            for place in places:
                yield from forward(sequence, context.prompt, 0)
                context.reveal([place], [ids[place]], [0.0])
            assert context.finished

    handle = submit(engine, script, prompt="ab", stop=["d"], max_new_tokens=len(ids) + 3)
    completion, _ = drain(engine, handle)
    assert completion.text == "abcabd"[:cut] and completion.finish_reason == "stop"
