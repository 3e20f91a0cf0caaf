"""Lookahead decoding: collect n-grams that Jacobi iterations produce, and check those that fit.

Fu et al., 2024 (arXiv:2402.02057). One pass does two things. The *lookahead branch* runs a window
of guesses for the next places; each column of it is a trajectory of Jacobi iterations, `ngram` - 1
tokens long, whose newest token is answered in this pass. A full trajectory and its answer are an
n-gram, which goes into a pool. The *verification branch* checks the pooled n-grams that begin with
the text's last token. Draws are keyed by position: at any temperature the text is the one that
`autoregressive` writes.

All of it is one tree after the last token. The window's oldest tokens are a chain; each later token
of a column has the one before it as its parent, so that it stands one place further on. N-grams are
branches beside them, equal beginnings are run once, and the check may accept any of it.

The pool belongs to the request; the window begins with the end of the prompt, repeated, and moves
on by one place a pass, however many tokens became final (as in the paper's code). Where all that
does not pay on this machine and in the company of other requests, both branches rest and are tried
now and then, as with `speculative`; with `adaptive=false` they never rest, as in the paper. Not
here: prompt log-probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Annotated

from anyorder.core.attention import Tree
from anyorder.core.forward import (
    NO_TOKEN,
    Check,
    Decoding,
    Outputs,
    forward,
)
from anyorder.core.method import Context, Method
from anyorder.core.options import Range
from anyorder.sampling.draft_length import DraftLength

_HOPE = 0.3
"""The share of passes with a right guess, before any was tried."""


@dataclass(frozen=True, kw_only=True)
class Lookahead(Method):
    """Check n-grams that the model came upon while it guessed ahead."""

    window: Annotated[int, Range(1, 64), "places guessed ahead at once"] = 7
    ngram: Annotated[int, Range(2, 16), "length of the n-grams, in tokens"] = 5
    guesses: Annotated[int, Range(1, 64), "n-grams with the same first token that are kept"] = 7
    adaptive: Annotated[bool, "guess only while it pays on this machine; false: in every pass"] = (
        True
    )

    @property
    def num_scratch_tokens(self) -> int:
        longest = self.ngram - 1
        # While columns grow to their full length there are more of them.
        cells = max((self.window + longest - size) * size for size in range(1, longest + 1))
        return self.guesses * longest + cells

    def decode(self, context: Context) -> Decoding:
        text = list(context.prompt)
        outputs = Outputs(logprob=False, top=context.request.logprobs, accepted=Check(first=1))
        pool: dict[int, list[tuple[int, ...]]] = {}
        columns = self._first_columns(text)
        lengths = DraftLength(len(columns), lambda grade: _HOPE) if self.adaptive else None
        with context.sequence() as sequence:
            first = Outputs(top=context.request.logprobs)
            result = yield from forward(sequence, text, 0, outputs=first)
            context.emit(result.tokens, result.logprobs, alternatives=result.top)
            text += result.tokens
            while not context.finished:
                room = context.max_new_tokens - (len(text) - len(context.prompt)) - 1
                columns = [c for place, c in enumerate(columns) if place + len(c) <= room]
                tree = _Tree(tokens=[text[-1]])
                for rest in pool.get(text[-1], ()):
                    tree.add_path(0, rest[:room])
                ends, head = [], 0
                for column in columns:
                    head = tree.add(head, column[0])
                    ends.append(tree.add_path(head, column[1:]))
                rests = lengths is not None and not _pays(context, lengths, len(tree.tokens))
                if rests:
                    tree = _Tree(tokens=[text[-1]])
                result = yield from forward(
                    sequence,
                    tree.tokens,
                    len(text) - 1,
                    attention=Tree(parents=tuple(tree.parents)),
                    outputs=outputs,
                )
                verdict = result.verdict
                assert verdict is not None, "a checked tree has a verdict"
                context.emit(
                    verdict.tokens,
                    verdict.logprobs,
                    alternatives=verdict.top,
                    num_drafted=len(verdict.accepted),
                )
                text += verdict.tokens
                if rests:
                    continue
                if lengths is not None and len(tree.tokens) > 1:
                    num_accepted = len(verdict.accepted)
                    lengths.record(0, max(lengths.longest, num_accepted), num_accepted)
                columns = self._advance(columns, [result.tokens[end] for end in ends], pool)
        if lengths is not None and lengths.complaint:
            context.note(lengths.complaint)

    def _first_columns(self, prompt: Seq[int]) -> list[list[int]]:
        """Columns of one token. One is dropped with every token that they grow by, since the text
        grows meanwhile, until `window` of them are full."""
        number = self.window + self.ngram - 2
        tail = prompt[-number:]
        return [[tail[place % len(tail)]] for place in range(number)]

    def _advance(
        self, columns: list[list[int]], answers: Seq[int], pool: dict[int, list[tuple[int, ...]]]
    ) -> list[list[int]]:
        """Let the columns grow by their answers, and pool the n-grams that are complete."""
        grown = []
        for column, answer in zip(columns, answers, strict=True):
            # Behind a wrong guess there may be no answer: the newest guess stays for another pass.
            grown.append([*column, column[-1] if answer == NO_TOKEN else answer])
        if grown and len(grown[0]) < self.ngram:
            return grown[1:]
        for first, *rest in grown:
            known = pool.setdefault(first, [])
            if tuple(rest) in known:
                known.remove(tuple(rest))
            known.insert(0, tuple(rest))
            del known[self.guesses :]
        return [column[1:] for column in grown]


def _pays(context: Context, lengths: DraftLength, size: int) -> bool:
    """Is it worth a pass over a tree of so many tokens? Any part of it may be accepted."""
    if size == 1:
        return True  # nothing is guessed
    chosen = lengths.choose(
        0,
        plain=context.pass_seconds(1),
        check=lambda length: context.pass_seconds(size),
        draft=lambda length: 0.0,
        others=context.num_others,
    )
    return chosen > 0


@dataclass(kw_only=True, eq=False)
class _Tree:
    """Tokens after the text's last one, which is its root; equal children of a token are one."""

    tokens: list[int]
    parents: list[int] = field(default_factory=lambda: [-1])
    known: dict[tuple[int, int], int] = field(default_factory=dict)

    def add(self, parent: int, token: int) -> int:
        """Offset of the child of `parent` that is `token`."""
        offset = self.known.setdefault((parent, token), len(self.tokens))
        if offset == len(self.tokens):
            self.tokens.append(token)
            self.parents.append(parent)
        return offset

    def add_path(self, parent: int, tokens: Seq[int]) -> int:
        """Offset of the last of `tokens`, one below the other, or of `parent`."""
        for token in tokens:
            parent = self.add(parent, token)
        return parent
