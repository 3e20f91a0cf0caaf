"""Guides for texts whose tokens are placed in any order: dynamic programming over an automaton.

DINGO (arXiv 2505.23061); constrained decoding of diffusion models (arXiv 2508.10111). The automaton
over tokens says which states can be reached before a place, and from which states the text can
still become complete behind it, with the places between open or not. A token may stand at a place
if it leads from one of the former to one of the latter: then some complete text has it there, along
with all that stands. Tokens placed together are checked one after the other, each with those before
it in place. Since more tokens never allow more, whatever is placed can be completed.

An end token stands where the text is complete, and behind it nothing but end tokens. Without any
end token, a text that is complete and cannot go on is over, and anything may stand behind it.

Not here: grammars that nest (automata are finite), and the most probable joint completion.

Shape suffixes: S states of the automaton, of which number 0 stands for texts that are over; B bytes
of a bitset over the vocabulary.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

import numpy as np

from anyorder.core.errors import GuideError
from anyorder.sampling.automata.byte_automaton import byte_automaton
from anyorder.sampling.automata.json_schema import json_schema_pattern
from anyorder.sampling.automata.pattern import Pattern, either, literal
from anyorder.sampling.automata.regex import regex_pattern
from anyorder.sampling.automata.token_automaton import TokenAutomaton, bitset, token_automaton
from anyorder.sampling.automata.vocabulary import Vocabulary, vocabulary
from anyorder.sampling.guide import MAX_CHOICES, MAX_LENGTH
from anyorder.sampling.schema import check_schema

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from anyorder.core.request import Guide

    States = NDArray[np.bool]

_NAMES = {"json_schema": "JSON Schema", "regex": "regex", "choices": "list of choices"}
_KEPT_AUTOMATA = 8
_KEPT_MASKS = 1024
_KEPT_STEPS = 2048
_KEPT_STATES = 4096


class CanvasGuide:
    """A compiled guide, as one request uses it, for all of its choices."""

    def __init__(
        self,
        automaton: TokenAutomaton,
        name: str,
        *,
        end_tokens: frozenset[int],
        never: frozenset[int] = frozenset(),
        first_end: int = 0,
    ) -> None:
        """`name` is what users call it. The `never` tokens stand nowhere, and no end token before
        the place `first_end`."""
        self._name = name
        never_in_text = (never | end_tokens) & frozenset(range(automaton.size))
        self._automaton = automaton.without(never_in_text) if never_in_text else automaton
        self._ends = end_tokens - never
        self._first_end = first_end
        accepting_S = automaton.accepting_S
        self._closing_S = accepting_S if self._ends else accepting_S & ~automaton.going_on_S
        """From where a token may end the text."""
        self._last_S = accepting_S.copy()
        self._last_S[0] = True
        """Where the last place may lead."""
        self._moves: dict[int, NDArray[np.int64]] = {}
        self._steps: dict[tuple[bytes, bool, bool], States] = {}
        """Over open places: (states, is it backwards, may the text end) to states."""
        self._masks: OrderedDict[tuple[bytes, bytes, bool], NDArray[np.uint8]] = OrderedDict()
        self._board: _Board | None = None
        self._states: dict[tuple[int, ...], int | None] = {(): 1}
        """Of texts asked about, read from left to right; None: they have none."""

    # -------------------------------------------------------------------------------- questions
    def fill_mask(
        self,
        text: Seq[int | None],
        place: int,
        length: int,
        words_W: torch.Tensor,
        *,
        blank: frozenset[int] = frozenset(),
    ) -> None:
        """Set the bits of ids allowed at a place of a text of `length` places, of which the first
        ones are given, None where they are open; lowest bit first, int32 on the host. `blank`
        tokens are no text: see `board`."""
        board = self._board
        if board is None or not board.shows(text, length, blank):
            board = self._board = self.board(text, length, blank)
        words_W.zero_()
        allowed_B = board.allowed(place)
        view_B = words_W.numpy().view(np.uint8)
        shared = min(len(view_B), len(allowed_B))
        view_B[:shared] = allowed_B[:shared]
        for token in blank:
            if board.allows(place, token):
                view_B[token // 8] |= 1 << token % 8

    def board(
        self, text: Seq[int | None], length: int, blank: frozenset[int] = frozenset()
    ) -> _Board:
        """The states around every place. Where there are `blank` tokens, each open place of `text`
        may turn out to be none of the text's, and whatever comes behind `text` may be one."""
        return _Board(self, text, length, blank)

    def complete(self, generated: Seq[int]) -> bool:
        """Is `generated` accepted, and can no text follow?"""
        text = tuple(generated)
        if text not in self._states:
            if len(self._states) >= _KEPT_STATES:
                self._states = {(): 1}
            known = len(text) - 1 if text[:-1] in self._states else 0
            state = self._states[text[:known]]
            for token in text[known:]:
                if state is not None:
                    sources, targets = self.moves(token)
                    found = targets[sources == state]
                    state = int(found[0]) if len(found) else None
            self._states[text] = state
        state = self._states[text]
        if state is None:
            return False
        return bool(self._automaton.accepting_S[state] and not self._automaton.going_on_S[state])

    def check(self, canvas: Seq[int | None]) -> None:
        """GuideError unless some text that is allowed has the canvas's tokens at their places."""
        shortest = self._shortest()
        if shortest is None or not self._automaton.going_on_S[1]:
            raise GuideError(f"the {self._name} matches no text of this model's tokens.")
        if shortest > len(canvas):
            raise GuideError(
                f"the shortest text that the {self._name} allows has {shortest} tokens, and there "
                f"are {len(canvas)} places for new ones; raise max_new_tokens."
            )
        board = self.board([None] * len(canvas), len(canvas))
        if not board.is_possible:
            raise GuideError(
                f"the {self._name} allows no text of {self._first_end} to {len(canvas)} tokens; "
                "change max_new_tokens, min_new_tokens or the canvas."
            )
        for place, token in enumerate(canvas):
            if token is None:
                continue
            if not board.allows(place, token):
                raise GuideError(
                    f"the canvas contradicts the {self._name}: no text of {len(canvas)} tokens "
                    f"that it allows has token {token} at place {place}, with the fixed ones "
                    "before it."
                )
            board.put(place, token)

    def fits(self, num_tokens: int) -> bool:
        """Is there a text of so many places, of which those behind its end count?"""
        return self.board([], num_tokens).is_possible

    def _shortest(self) -> int | None:
        """Tokens of the shortest text; None: there is none."""
        reached_S = self.start
        for count in range(len(reached_S)):
            if (reached_S & self._automaton.accepting_S).any():
                return count
            sources, targets = self._automaton.pairs
            further_S = reached_S.copy()
            further_S[targets[reached_S[sources]]] = True
            reached_S = further_S
        return None

    # ---------------------------------------------------------------------------- for the board
    @property
    def start(self) -> States:
        """The states before the first place."""
        states_S = np.zeros(self._automaton.num_states, bool)
        states_S[1] = True
        return states_S

    @property
    def last(self) -> States:
        """The states behind the last place with which the text is complete."""
        return self._last_S

    def moves(self, token: int) -> NDArray[np.int64]:
        """[2, P]: from where to where a token leads within the text."""
        if token not in self._moves:
            if token < self._automaton.size:
                self._moves[token] = self._automaton.moves(token)
            else:
                self._moves[token] = np.zeros((2, 0), np.int64)
        return self._moves[token]

    def _may_end(self, place: int) -> bool:
        return place >= self._first_end

    def step(self, states_S: States, place: int, token: int | None, *, back: bool) -> States:
        """The states behind a place, of those before it; or before it, of those behind."""
        if token is None:
            key = states_S.tobytes(), back, self._may_end(place)
            if key not in self._steps:
                if len(self._steps) >= _KEPT_STEPS:
                    self._steps.clear()
                self._steps[key] = self._step(states_S, place, self._automaton.pairs, back)
            return self._steps[key]
        return self._step(states_S, place, self.moves(token), back, self._can_close(token))

    def _can_close(self, token: int) -> bool:
        """May the token end the text, or stand behind its end?"""
        return token in self._ends if self._ends else True

    def _step(
        self,
        states_S: States,
        place: int,
        pairs: NDArray[np.int64],
        back: bool,
        can_close: bool = True,
    ) -> States:
        found_S = np.zeros(len(states_S), bool)
        sources, targets = pairs[::-1] if back else pairs
        found_S[targets[states_S[sources]]] = True
        if can_close and back and states_S[0]:
            found_S[0] = True
            if self._may_end(place):
                found_S |= self._closing_S
        elif can_close and not back:
            found_S[0] = states_S[0] or self._closes(states_S, place)
        return found_S

    def _closes(self, before_S: States, place: int) -> bool:
        return self._may_end(place) and bool((before_S & self._closing_S).any())

    def mask(self, before_S: States, after_S: States, place: int) -> NDArray[np.uint8]:
        """The bitset of tokens that lead from some states to others at a place."""
        key = before_S.tobytes(), after_S.tobytes(), self._may_end(place)
        if key in self._masks:
            self._masks.move_to_end(key)
            return self._masks[key]
        allowed_B = self._automaton.tokens(before_S, after_S)
        if after_S[0] and (before_S[0] or self._closes(before_S, place)):
            ends = sorted(self._ends) or range(self._automaton.size)
            closing_B = bitset(np.array(ends), max(len(allowed_B), ends[-1] // 8 + 1))
            closing_B[: len(allowed_B)] |= allowed_B
            allowed_B = closing_B
        self._masks[key] = allowed_B
        if len(self._masks) > _KEPT_MASKS:
            self._masks.popitem(last=False)
        return allowed_B

    def leads(self, before_S: States, after_S: States, place: int, token: int) -> bool:
        """Does a token lead from one of some states to one of others at a place?"""
        sources, targets = self.moves(token)
        if (before_S[sources] & after_S[targets]).any():
            return True
        over = before_S[0] or self._closes(before_S, place)
        return bool(self._can_close(token) and after_S[0] and over)


class _Board:
    """A text with open places: the states before each place, and those from which it can be
    completed behind each."""

    def __init__(
        self, guide: CanvasGuide, text: Seq[int | None], length: int, blank: frozenset[int]
    ) -> None:
        self._guide = guide
        self._given = tuple(text)
        self._blank = blank
        self._text: list[int | None] = [*text, *[None] * (length - len(text))]
        self._before = [guide.start]
        """By place, and one for the end; before a place, behind all those before it."""
        self._behind = [guide.last]
        """The same, given all that follows."""
        for place in range(length):
            self._before.append(self._step(self._before[-1], place, back=False))
        for place in range(length - 1, -1, -1):
            self._behind.append(self._step(self._behind[-1], place, back=True))
        self._behind.reverse()

    def _step(self, states_S: States, place: int, *, back: bool) -> States:
        """See CanvasGuide.step; over a place that may be none, or is."""
        token = self._text[place]
        if token in self._blank:
            return states_S
        found_S = self._guide.step(states_S, place, token, back=back)
        if token is None and self._blank and place < len(self._given):
            found_S = found_S | states_S
        return found_S

    def shows(self, text: Seq[int | None], length: int, blank: frozenset[int]) -> bool:
        """Is it this text's?"""
        same = len(self._text) == length and self._blank == blank
        return same and self._given == tuple(text)

    @property
    def is_possible(self) -> bool:
        """Can the text be completed?"""
        return bool((self._before[-1] & self._behind[-1]).any())

    def allowed(self, place: int) -> NDArray[np.uint8]:
        """The bitset of tokens that may stand at a place, whatever stands there now."""
        return self._guide.mask(self._before[place], self._behind[place + 1], place)

    def allows(self, place: int, token: int) -> bool:
        """May a token stand at a place?"""
        if token in self._blank:
            behind = place >= len(self._given)
            return behind or bool((self._before[place] & self._behind[place + 1]).any())
        return self._guide.leads(self._before[place], self._behind[place + 1], place, token)

    def put(self, place: int, token: int) -> None:
        """Place a token."""
        self._text[place] = token
        for at in range(place, len(self._text)):
            fresh_S = self._step(self._before[at], at, back=False)
            if (fresh_S == self._before[at + 1]).all():
                break
            self._before[at + 1] = fresh_S
        for at in range(place, -1, -1):
            fresh_S = self._step(self._behind[at + 1], at, back=True)
            if (fresh_S == self._behind[at]).all():
                break
            self._behind[at] = fresh_S


class CanvasGuideCompiler:
    """Compiles guides for one tokenizer; keeps the last few automata."""

    def __init__(self, tokenizer_json: str) -> None:
        """`tokenizer_json` is the text of a tokenizer.json file; it is read when first needed."""
        self._tokenizer_json = tokenizer_json
        self._vocabulary: Vocabulary | None = None
        self._automata: OrderedDict[Guide, TokenAutomaton] = OrderedDict()
        self._lock = threading.Lock()

    def compile(
        self,
        guide: Guide,
        *,
        end_tokens: frozenset[int],
        never: frozenset[int] = frozenset(),
        first_end: int = 0,
    ) -> CanvasGuide:
        """A guide for one request; see `CanvasGuide`. GuideError: it is malformed, uses what no
        finite automaton can follow, or exceeds limits on size; or the tokenizer cannot be guided.
        """
        with self._lock:
            if guide not in self._automata:
                pattern = _pattern(guide)
                try:
                    automaton = byte_automaton(pattern)
                except RecursionError:
                    raise _too_deep(guide) from None
                self._automata[guide] = token_automaton(automaton, self._load())
            self._automata.move_to_end(guide)
            if len(self._automata) > _KEPT_AUTOMATA:
                self._automata.popitem(last=False)
            return CanvasGuide(
                self._automata[guide],
                _NAMES[guide.kind],
                end_tokens=end_tokens,
                never=never,
                first_end=first_end,
            )

    def _load(self) -> Vocabulary:
        if self._vocabulary is None:
            from llguidance import LLTokenizer

            try:
                tokenizer = LLTokenizer(self._tokenizer_json)
            except ValueError as error:
                raise GuideError(
                    f"this model's tokenizer cannot be guided: {str(error).splitlines()[0]}; "
                    "generate without a guide."
                ) from None
            self._vocabulary = vocabulary(
                [
                    b"" if tokenizer.is_special_token(token) else tokenizer.decode_bytes([token])
                    for token in range(tokenizer.vocab_size)
                ]
            )
        return self._vocabulary


def _pattern(guide: Guide) -> Pattern:
    """What texts the guide allows."""
    if guide.kind not in _NAMES:
        raise GuideError(
            f"a {guide.kind} grammar may nest without end and cannot guide a canvas; use a regex, "
            "choices or a JSON Schema, or autoregressive."
        )
    if len(guide.value) > MAX_LENGTH:
        raise GuideError(
            f"the {_NAMES[guide.kind]} has {len(guide.value)} characters; at most {MAX_LENGTH} are "
            "allowed."
        )
    try:
        if guide.kind == "regex":
            return regex_pattern(guide.value)
        value = json.loads(guide.value)
        if guide.kind == "json_schema":
            check_schema(value)
            return json_schema_pattern(value)
    except RecursionError:
        raise _too_deep(guide) from None
    if len(value) > MAX_CHOICES:
        raise GuideError(f"there are {len(value)} choices; at most {MAX_CHOICES} are allowed.")
    return either(map(literal, value))


def _too_deep(guide: Guide) -> GuideError:
    return GuideError(f"the {_NAMES[guide.kind]} nests too deeply; simplify it.")
