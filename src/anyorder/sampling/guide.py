"""Guided generation: which tokens keep a text inside a JSON Schema, regex, grammar or choice.

Grammars are compiled and matched by llguidance, within limits on time and memory; see `schema` for
what of JSON Schema is supported. End tokens are allowed exactly where the text so far is complete.

JSON may have whitespace between its tokens, up to 40 spaces, tabs and line ends in a row (enough to
print it prettily, and no room for an endless run of them); none before or after the whole.

Not here: making the text shorter (forced tokens are computed by the model like all others).
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from anyorder.core.errors import GuideError
from anyorder.sampling.schema import check_grammar, check_schema

if TYPE_CHECKING:
    import torch
    from llguidance import LLMatcher, LLTokenizer

    from anyorder.core.request import Guide

WHITESPACE = r"[ \t\n\r]{1,40}"
MAX_LENGTH = 2**18
"""Characters of a schema, regex, grammar or list of choices."""
MAX_CHOICES = 10_000
_GRACE_SECONDS = 2.0
_SECONDS_A_QUESTION = 0.005
"""Computing that one text may take: everybody else's pass waits for it. A usual guide takes a tenth
of this."""
_CACHED_GRAMMARS = 64
_MATCHERS = 64
"""Continuations of one request followed at the same time; more are followed from further back."""


@dataclass(kw_only=True, eq=False, slots=True)
class _Branch:
    matcher: LLMatcher
    tokens: list[int]
    """What the matcher has consumed."""


class GuideState:
    """A compiled guide, as one request uses it.

    Questions may go back and branch (beams, drafts): a few matchers are kept, each at the end of
    the text last asked of it. Going on from there costs one step per token; branching off costs a
    copy and a rollback.
    """

    def __init__(
        self, matcher: LLMatcher, compile: Callable[[], LLMatcher], num_ids: int, hidden: int | None
    ) -> None:
        """`matcher` is at the start of the text; `compile` makes another one like it. `num_ids` is
        the matcher's vocabulary, of which the id `hidden` is never allowed."""
        import torch

        self._start = matcher
        self._compile = compile
        self._hidden = hidden
        self._num_asked = 0
        self._seconds = 0.0
        self._branches: list[_Branch] = []
        """The most recently used last."""
        self._words = torch.zeros(-(-num_ids // 32), dtype=torch.int32)

    def fill_mask(self, generated: Seq[int], words_W: torch.Tensor) -> None:
        """Set the bits of ids allowed after `generated`, lowest bit first; int32 on the host.

        A text outside of the guide's language constrains nothing: the mask forbids such texts, so
        only a draft that is about to be rejected can ask. GuideError: a limit was exceeded.
        """
        if not self._ask(self._compute_mask, generated):
            words_W.fill_(-1)
            return
        shared = min(len(words_W), len(self._words))
        words_W[shared:] = 0
        words_W[:shared] = self._words[:shared]

    def complete(self, generated: Seq[int]) -> bool:
        """Is `generated` accepted, and can no text follow? GuideError: a limit was exceeded."""
        return self._ask(self._is_stopped, generated)

    def _ask(self, question: Callable[[list[int]], bool], generated: Seq[int]) -> bool:
        """Copies of a matcher share an automaton, built as texts need it and limited in size; if
        others used it up, this text gets its own before it counts as too complex."""
        if self._seconds > _GRACE_SECONDS + self._num_asked * _SECONDS_A_QUESTION:
            raise GuideError(
                f"the guide is too slow to follow: {self._num_asked} steps took "
                f"{self._seconds:.1f} seconds of computing; simplify it."
            )
        tokens, began = list(generated), time.thread_time()
        try:
            return question(tokens)
        except GuideError:
            self._start = self._compile()
            self._branches.clear()
            return question(tokens)
        finally:
            self._num_asked += 1
            self._seconds += time.thread_time() - began

    def _compute_mask(self, tokens: list[int]) -> bool:
        """Put the mask into `_words`; False if `tokens` are outside of the language."""
        import torch

        branch = self._follow(tokens)
        if branch is None:
            return False
        size = self._words.numel() * self._words.element_size()
        branch.matcher.unsafe_compute_mask_ptr(self._words.data_ptr(), size)
        _check(branch.matcher)
        if self._hidden is not None:
            self._words.view(torch.uint8)[self._hidden // 8] &= 0xFF ^ 1 << self._hidden % 8
        return True

    def _is_stopped(self, tokens: list[int]) -> bool:
        branch = self._follow(tokens)
        return branch is not None and branch.matcher.is_stopped()

    def _follow(self, tokens: list[int]) -> _Branch | None:
        """A branch at the end of `tokens`; None where that is outside of the language."""
        branch = self._nearest(tokens)
        new = tokens[len(branch.tokens) :]
        num_consumed = branch.matcher.try_consume_tokens(new) if new else 0
        _check(branch.matcher)
        branch.tokens += new[:num_consumed]
        return branch if num_consumed == len(new) else None

    def _nearest(self, tokens: list[int]) -> _Branch:
        """A branch at the longest known prefix of `tokens`, made the most recently used."""
        shared, nearest = 0, None
        for branch in reversed(self._branches):
            if nearest is not None and branch.tokens[: shared + 1] != tokens[: shared + 1]:
                continue
            shared, nearest = _common(branch.tokens, tokens), branch
            if shared >= len(tokens) - 1:
                break
        if nearest is not None and len(nearest.tokens) == shared:
            self._branches.remove(nearest)
        else:
            nearest = self._fork(nearest, shared)
        self._branches.append(nearest)
        del self._branches[:-_MATCHERS]
        return nearest

    def _fork(self, branch: _Branch | None, length: int) -> _Branch:
        """A copy of the branch, cut back to `length` tokens."""
        if branch is None or not length:
            return _Branch(matcher=self._start.deep_copy(), tokens=[])
        matcher = branch.matcher.deep_copy()
        went_back = matcher.rollback(len(branch.tokens) - length)
        assert went_back, matcher.get_error()
        return _Branch(matcher=matcher, tokens=branch.tokens[:length])


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        reason = _reason(matcher.get_error())
        raise GuideError(f"the guide is too complex to follow: {reason}; simplify it.")


class GuideCompiler:
    """Compiles guides for one tokenizer; keeps the last few."""

    def __init__(self, tokenizer_json: str, end_tokens: frozenset[int]) -> None:
        """`tokenizer_json` is the text of a tokenizer.json file; it is read when first needed.

        Logits beyond the tokenizer's ids are never allowed. Without end tokens, a text ends only
        where the guide is complete.
        """
        self._tokenizer_json = tokenizer_json
        self._end_tokens = end_tokens
        self._hidden: int | None = None
        self._tokenizer: LLTokenizer | None = None
        self._matchers: OrderedDict[Guide, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()
        """Requests are prepared in one thread while another one's grammar is renewed."""

    def compile(self, guide: Guide) -> GuideState:
        """A new state at the start of the text.

        GuideError: it is malformed, uses what is not supported, matches nothing, or exceeds limits
        on size; or the model's tokenizer is of a kind that cannot be guided.
        """
        with self._lock:
            matcher = self._matchers.get(guide)
            if matcher is not None:
                self._matchers.move_to_end(guide)
        if matcher is None:
            matcher = self._renew(guide)
        size = self._load().vocab_size
        return GuideState(matcher, lambda: self._renew(guide), size, self._hidden)

    def _renew(self, guide: Guide) -> LLMatcher:
        matcher = self._compile(guide)  # nobody else waits for this one's grammar
        with self._lock:
            self._matchers[guide] = matcher
            if len(self._matchers) > _CACHED_GRAMMARS:
                self._matchers.popitem(last=False)
        return matcher

    def _load(self) -> LLTokenizer:
        with self._lock:
            return self._loaded()

    def _loaded(self) -> LLTokenizer:
        if self._tokenizer is None:
            from llguidance import LLTokenizer

            end_tokens = sorted(self._end_tokens) or [self._add_end_token()]
            try:
                self._tokenizer = LLTokenizer(self._tokenizer_json, eos_token=end_tokens)
            except ValueError as error:
                raise GuideError(
                    f"this model's tokenizer cannot be guided: {_reason(str(error))}; generate "
                    "without a guide."
                ) from None
        return self._tokenizer

    def _add_end_token(self) -> int:
        """Matchers need an end token: a model without gets one that no text can contain."""
        tokenizer = json.loads(self._tokenizer_json)
        ids = [token["id"] for token in tokenizer["added_tokens"]]
        self._hidden = max(len(tokenizer["model"]["vocab"]), *(id_ + 1 for id_ in ids), 0)
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        token = {"id": self._hidden, "content": "<|end of guide|>", "special": True, **flags}
        tokenizer["added_tokens"].append(token)
        self._tokenizer_json = json.dumps(tokenizer)
        return self._hidden

    def _compile(self, guide: Guide) -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(
            max_items_in_row=_MAX_ITEMS[guide.kind],
            initial_lexer_fuel=1_000_000,
            step_lexer_fuel=200_000,
            step_max_items=50_000,
            max_lexer_states=50_000,
            max_grammar_size=500_000,
            verbose_errors=False,
        )
        name = _NAMES[guide.kind]
        matcher = LLMatcher(self._load(), _grammar(guide), log_level=0, limits=limits)
        problems = [matcher.get_error()] if matcher.is_error() else matcher.get_grammar_warnings()
        if problems:
            raise GuideError(f"the {name} cannot be used: {_reason(problems[0])}.")
        first = matcher.deep_copy()
        mask = int.from_bytes(first.compute_bitmask(), "little")
        if first.is_error():
            reason = _reason(first.get_error())
            raise GuideError(f"the {name} matches no text or is too complex ({reason}).")
        if not mask & ~sum(1 << token for token in self._load().eos_tokens):
            raise GuideError(f"the {name} matches no text but the empty one.")
        return matcher


_MAX_ITEMS = {"json_schema": 2_000, "regex": 2_000, "lark": 500, "choices": 2_000}
"""Ways of reading the text so far that are followed at once. A large schema has many from the
start; an ambiguous grammar gets more with every token, and slower with their square."""


def _common(some: list[int], others: list[int]) -> int:
    """Length of the longest common prefix."""
    if some == others[: len(some)]:
        return len(some)
    pairs = zip(some, others, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


_NAMES = {
    "json_schema": "JSON Schema",
    "regex": "regex",
    "lark": "grammar",
    "choices": "list of choices",
}


def _grammar(guide: Guide) -> str:
    """The guide in llguidance's own form, after the checks that llguidance does not make."""
    from llguidance import LLMatcher

    if len(guide.value) > MAX_LENGTH:
        raise GuideError(
            f"the {_NAMES[guide.kind]} has {len(guide.value)} characters; at most {MAX_LENGTH} are "
            "allowed."
        )
    if guide.kind == "json_schema":
        check_schema(json.loads(guide.value))
        return LLMatcher.grammar_from_json_schema(
            guide.value, overrides={"whitespace_pattern": WHITESPACE}
        )
    if guide.kind == "regex":
        return LLMatcher.grammar_from_regex(guide.value)
    if guide.kind == "lark":
        check_grammar(guide.value)
        return LLMatcher.grammar_from_lark(guide.value)
    options = json.loads(guide.value)
    if len(options) > MAX_CHOICES:
        raise GuideError(f"there are {len(options)} choices; at most {MAX_CHOICES} are allowed.")
    return LLMatcher.grammar_from_regex("|".join(map(_literal, options)))


def _literal(text: str) -> str:
    """A regex that matches exactly this text."""
    return "".join(
        letter if letter.isascii() and letter.isalnum() else f"\\x{{{ord(letter):x}}}"
        for letter in text
    )


def _reason(message: str) -> str:
    """The line of a longer message that says what is wrong."""
    _, found, error = message.partition("\nerror: ")
    line = (error if found else message).splitlines()[0]
    return line.strip().rstrip(".")[:300]
