"""End of text: stop strings across tokens, end tokens, limits; pieces join to the text."""

from __future__ import annotations

import random
from collections.abc import Sequence as Seq

import pytest

from anyorder.engine.text import ChoiceBuilder, EndRules, Final

PIECES = ["", "a", "b", "ab", "ba", "c", "abc", "bb"]
END = 0


class ToyStream:
    """Gives text at once, except that token 5 ("c") is only complete with the next token."""

    def __init__(self) -> None:
        self.held = ""

    def push(self, ids: Seq[int]) -> str:
        text = self.held + "".join(PIECES[i] for i in ids)
        self.held = "c" if text.endswith("c") and ids[-1] == 5 else ""
        return text[: len(text) - len(self.held)]

    def flush(self) -> str:
        held, self.held = self.held, ""
        return held


class ToyTokenizer:
    def stream(self, *, continued: bool = False) -> ToyStream:
        return ToyStream()

    def decode(self, ids: Seq[int], *, continued: bool = False) -> str:
        return "".join(PIECES[i] for i in ids)

    def token_text(self, token: int) -> str:
        return PIECES[token]


class DoneAfter:
    def __init__(self, length: int) -> None:
        self.length = length

    def complete(self, generated: Seq[int]) -> bool:
        return len(generated) >= self.length


def rules(**changes: object) -> EndRules:
    fields = {
        "end_tokens": frozenset({END}),
        "stop": (),
        "max_new_tokens": 12,
        "tokenizer": ToyTokenizer(),
        "guide": None,
    }
    return EndRules(**{**fields, **changes})  # type: ignore[arg-type]


def feed(builder: ChoiceBuilder, tokens: list[int]) -> list[str]:
    pieces = []
    for token in tokens:
        if builder.finish_reason is None:
            builder.reveal(len(builder.tokens), Final(token=token, logprob=-1.0, step=1))
            pieces.append(builder.release()[0])
    return pieces


@pytest.mark.parametrize("seed", range(300))
def test_text_ends_before_the_first_stop_string(seed: int) -> None:
    rng = random.Random(seed)
    tokens = [rng.randrange(1, len(PIECES)) for _ in range(12)]
    stop = tuple(
        "".join(rng.choice("abc") for _ in range(rng.randrange(1, 5)))
        for _ in range(rng.randrange(3))
    )
    builder = ChoiceBuilder(rules(stop=stop))
    pieces = feed(builder, tokens)
    choice = builder.build()
    whole = ToyTokenizer().decode(tokens)
    found = [at for at in map(whole.find, stop) if at >= 0]
    assert "".join(pieces) == choice.text
    if found:
        assert choice.finish_reason == "stop"
        # A longer stop string may begin earlier but be completed by later tokens only.
        seen = ToyTokenizer().decode(choice.tokens)
        assert choice.text == whole[: min(at for at in map(seen.find, stop) if at >= 0)]
        assert not any(text in ToyTokenizer().decode(choice.tokens[:-2]) for text in stop)
    else:
        assert choice.text == whole and choice.finish_reason == "length"
    assert rules(stop=stop).ends(tokens) == bool(found)


def test_end_token_leaves_no_text_and_ends() -> None:
    builder = ChoiceBuilder(rules())
    assert feed(builder, [1, 2, END, 3]) == ["a", "b", ""]
    choice = builder.build()
    assert (choice.text, choice.tokens, choice.finish_reason) == ("ab", [1, 2, END], "stop")
    assert rules().ends([1, END]) and not rules().ends([END, 1])


def test_what_is_held_back_is_released_at_the_end() -> None:
    builder = ChoiceBuilder(rules(stop=("abz",), max_new_tokens=2))
    assert feed(builder, [1, 2]) == ["", "ab"]
    unfinished = ChoiceBuilder(rules(max_new_tokens=2))
    assert feed(unfinished, [1, 5]) == ["a", "c"]


def test_a_complete_guide_ends_the_text() -> None:
    guided = rules(guide=DoneAfter(3))
    builder = ChoiceBuilder(guided)
    feed(builder, [1, 2, 3, 4])
    assert builder.build().tokens == [1, 2, 3] and builder.finish_reason == "stop"
    assert guided.ends([1, 2, 3]) and not guided.ends([1, 2])


def test_without_a_tokenizer_there_is_no_text() -> None:
    builder = ChoiceBuilder(rules(tokenizer=None, max_new_tokens=2))
    feed(builder, [1, 2])
    assert builder.build().text == ""


def test_nothing_wanted_is_finished_at_once() -> None:
    choice = ChoiceBuilder(rules(max_new_tokens=0)).build()
    assert choice.tokens == [] and choice.finish_reason == "length"


def test_unfinished_choices_cannot_be_built() -> None:
    with pytest.raises(AssertionError, match="not finished"):
        ChoiceBuilder(rules()).build()
