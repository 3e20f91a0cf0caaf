"""Jacobi decoding: guess a block of tokens, let the model correct all of them at once, repeat.

Greedy text is the solution of x_i = argmax p(. | x_<i), one equation a token; Jacobi's iteration
solves a block of them in parallel (Santilli et al., 2023, arXiv:2305.10427; CLLM, Kou et al., 2024,
arXiv:2403.00835). Every pass answers all guesses; those up to the first that differs from its
answer are final, with that answer, and the answers after it are the next guesses. The block moves
with the text, so it could always be full. Draws are keyed by position, so a sampled text has
equations too: at any temperature it is the one that `autoregressive` writes.

A place that was never answered is guessed to repeat what stands `size` tokens before it, so the
first block is the end of the prompt. Models gain from this little unless trained for it (CLLM),
and repetitive text much. So no more of the block is run than pays on this machine and in the
company of other requests, as with `speculative`; with `adaptive=false` it is always full, as in the
papers. Not here: that training, and prompt log-probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from anyorder.core.forward import NO_TOKEN, Check, Decoding, Outputs, forward
from anyorder.core.method import Context, Method
from anyorder.core.options import Range
from anyorder.sampling.draft_length import DraftLength

_HOPE = 0.3
"""The share of first guesses that are right, before any was tried."""


@dataclass(frozen=True, kw_only=True)
class Jacobi(Method):
    """Correct a block of guesses until they agree with the model, in parallel."""

    size: Annotated[int, Range(1, 256), "guesses in the block"] = 16
    adaptive: Annotated[
        bool, "run only as much of the block as pays on this machine; false: all of it"
    ] = True

    def decode(self, context: Context) -> Decoding:
        text, cached, answers = list(context.prompt), 0, list[int]()
        lengths = DraftLength(self.size, lambda answered: _HOPE) if self.adaptive else None
        with context.sequence() as sequence:
            while not context.finished:
                # One token more than the guesses becomes final.
                room = context.max_new_tokens - (len(text) - len(context.prompt)) - 1
                # Guesses that were answered before are of another grade than repetitions.
                grade = int(bool(answers) and answers[0] != NO_TOKEN)
                length = min(room, self._length(context, lengths, grade) if room else 0)
                guesses = self._guess(text, answers)[:length]
                first_place = len(text) - len(context.prompt)
                places = range(first_place, first_place + len(guesses))
                context.preview(places, guesses)
                new = text[cached:]
                result = yield from forward(
                    sequence,
                    [*new, *guesses],
                    cached,
                    outputs=Outputs(
                        logprob=False, top=context.request.logprobs, accepted=Check(first=len(new))
                    ),
                )
                verdict = result.verdict
                assert verdict is not None, "checked guesses have a verdict"
                context.emit(
                    verdict.tokens,
                    verdict.logprobs,
                    alternatives=verdict.top,
                    num_drafted=len(verdict.accepted),
                )
                text += verdict.tokens
                rejected = places[len(verdict.tokens) :]
                context.preview(rejected, [None] * len(rejected))
                cached = len(text) - 1
                if lengths is not None:
                    lengths.record(grade, len(guesses), len(verdict.accepted))
                answers = result.tokens[len(verdict.tokens) :]
        if lengths is not None and lengths.complaint:
            context.note(lengths.complaint)

    def _length(self, context: Context, lengths: DraftLength | None, grade: int) -> int:
        """How many guesses to run."""
        if lengths is None:
            return self.size
        return lengths.choose(
            grade,
            plain=context.pass_seconds(1),
            check=lambda length: context.pass_seconds(1 + length),
            draft=lambda length: 0.0,
            others=context.num_others,
        )

    def _guess(self, text: list[int], answers: list[int]) -> list[int]:
        """A full block: what was answered in the pass before, and a repetition after it."""
        line = text[-self.size :]
        known = len(line)
        for place in range(self.size):
            answer = answers[place] if place < len(answers) else NO_TOKEN
            line.append(line[-min(self.size, len(line))] if answer == NO_TOKEN else answer)
        return line[known:]
