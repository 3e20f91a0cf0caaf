"""Uniform diffusion: from a canvas of random tokens to text, correcting any token at any time.

The reverse of replacing tokens by random ones (D3PM, arXiv 2107.03006; in continuous time UDLM,
arXiv 2412.10193), for networks trained by the objective of this name: at each place they tell the
clean token given all *other* places, since what stands at the place itself is no help to the best
of them. There is no mask; every pass sees the whole canvas.

`sampler=ancestral` draws each place from how the noise was made. With a share a of clean tokens now
and b after the step, p(y) what the network tells, r(y) = b p(y) + (1 - b) / V, and the token z that
stands: y is next with a weight of r(y) times (1 - a / b) / V, and a / b more for y = z. So z stays
by chance, and otherwise is drawn from r: from the network with probability b, else any token. At
temperature 1 that samples the network's own distribution as `steps` grow. D3PM's sampler and SEDD's
analytic one (Tweedie's formula, arXiv 2310.16834) both have these chances, given p. Networks of
SEDD tell ratios of probabilities instead, from which p is computed before anything is drawn.

`sampler=renoise` draws all places from the network in every step; those that the commit policy
chooses stand until the next pass, the others become random tokens again (DiffusionGemma, with the
entropy bound of arXiv 2505.24857). It ends early when all were chosen and none changed.

Penalties and bans see the prompt and fixed tokens; penalties for what was generated are refused
where none are fixed. Tokens that may not stand together (banned sequences, n-grams) are drawn again
at the end, the likelier ones first.

DiffusionGemma itself reads text causally, cached, and a canvas of fixed length behind it both ways.
On such networks `renoise` fills one canvas after the other, and reads in each step what the
network believed in the last one (self-conditioning, arXiv 2208.04202). Beliefs, and the entropies
that the policy looks at, are at a temperature that goes from `first_temperature` towards
`last_temperature`; draws at that times the request's. A canvas is done once its likeliest tokens
are those of the step before and its mean entropy is below `sure`, and these tokens are the text.
The schedule plays no part, so that `commit` should be one that asks for no number of tokens
(entropy_bound, threshold). Guides and bans of repeated n-grams are refused here, since nothing
keeps tokens from standing together.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

from anyorder.core.attention import BIDIRECTIONAL, Canvas
from anyorder.core.errors import InvalidRequest
from anyorder.core.forward import (
    NOTHING,
    CanvasRows,
    Decoding,
    ForwardRequest,
    ForwardResult,
    Outputs,
    forward,
)
from anyorder.core.method import Abilities, Context, Method, Needs
from anyorder.core.options import Part, Range
from anyorder.core.request import Request
from anyorder.core.sequence import Sequence
from anyorder.sampling.denoising import candidates
from anyorder.sampling.unmasking import Candidate, Commit, Schedule, Step, open_share
from anyorder.sampling.unmasking.entropy_bound import EntropyBound


@dataclass(frozen=True, kw_only=True)
class UniformDiffusion(Method):
    """Correct a canvas of random tokens until it is text."""

    sampler: Annotated[
        Literal["ancestral", "renoise"],
        "ancestral: undo the noise as it was made (D3PM; SEDD's analytic); renoise: keep what "
        "the commit policy chooses",
    ] = "ancestral"
    steps: Annotated[int, Range(1), "denoising steps"] = 64
    schedule: Annotated[Schedule, "which share of the canvas is noise after which steps"] = "linear"
    commit: Annotated[Commit, Part("sampling/unmasking"), "renoise: which tokens a step keeps"] = (
        field(default_factory=EntropyBound)
    )
    first_temperature: Annotated[
        float | None, Range(0.01, 100), "behind causal text: of the first step; none: 1"
    ] = None
    last_temperature: Annotated[
        float | None, Range(0.01, 100), "behind causal text: towards the last; none: as the first"
    ] = None
    sure: Annotated[
        float | None, Range(0.0), "behind causal text: entropy to stop at; none: after all steps"
    ] = None

    needs: ClassVar[Needs] = Needs(attention="bidirectional")
    exact: ClassVar[bool] = False
    fills_canvas: ClassVar[bool] = True
    may_begin: ClassVar[bool] = True

    def check(self, request: Request) -> None:
        """Nothing but fixed tokens counts as generated before."""
        for name in ("presence_penalty", "frequency_penalty"):
            if getattr(request, name) and request.canvas is None:
                raise InvalidRequest(
                    f"uniform_diffusion draws all tokens anew in every pass, so {name} finds none "
                    "generated before; leave it at 0, or use repetition_penalty, which counts the "
                    "prompt's."
                )

    def missing(self, models: Mapping[str, Abilities]) -> str | None:
        """Canvases behind causal text know noise by other steps, and have options of their own."""
        target = models["target"]
        if target.canvas_length:
            named = "sampler=renoise" if self.sampler == "ancestral" else None
            return None if named is None else f"{named}; {target.name} knows no other"
        for name in ("first_temperature", "last_temperature", "sure"):
            if getattr(self, name) is not None:
                return f"no {name}; {target.name} does not read text causally"
        return None

    def cached_length(self, num_tokens: int, abilities: Abilities) -> int:
        """Whole canvases, as far as the context reaches."""
        return min(num_tokens + abilities.canvas_length, abilities.context_length)

    def temperature(self, number: int) -> float:
        """Of a step, behind causal text."""
        first = 1.0 if self.first_temperature is None else self.first_temperature
        last = first if self.last_temperature is None else self.last_temperature
        return last + (first - last) * (self.steps - number) / self.steps

    def decode(self, context: Context) -> Decoding:
        if context.finished:
            return
        if context.abilities.canvas_length:
            yield from _Canvases(self, context).decode()
            return
        if context.abilities.mask_token is not None:
            context.note(
                f"{context.abilities.name} was trained to fill masks, and uniform_diffusion gives "
                "it none."
            )
        canvas = _Canvas(context)
        with context.sequence() as sequence:
            for number in range(self.steps):
                before, after = (
                    open_share(self.schedule, (number + ahead) / self.steps) for ahead in (0, 1)
                )
                step = Step(
                    before=before,
                    after=after,
                    due=len(canvas.places) - int(len(canvas.places) * after + 1e-9),
                )
                places, stream = canvas.places, f"step {number}"
                if self.sampler == "ancestral":
                    wanted = Outputs(chance=True)
                    result = yield from canvas.ask(sequence, places, wanted, stream, before)
                    canvas.undo(result, step, number)
                    continue
                wanted = Outputs(entropy=self.commit.reads_entropy, margin=self.commit.reads_margin)
                result = yield from canvas.ask(sequence, places, wanted, stream, before)
                if canvas.renoise(result, self.commit, step, number):
                    break
            yield from canvas.settle(sequence)
        canvas.reveal()


Passes = Generator[list[ForwardRequest], list[ForwardResult], ForwardResult]


class _Canvas:
    """What stands at the open places, and what the network said of it last."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._size = context.abilities.vocabulary_size
        self._fixed = list(context.canvas or [None] * context.max_new_tokens)
        self.places = [place for place, token in enumerate(self._fixed) if token is None]
        self._tokens = [0 if token is None else token for token in self._fixed]
        self._logprobs: dict[int, float] = {}
        self._others: dict[int, Seq[tuple[int, float]]] = {}
        self._stand({place: self._noise(-1, place) for place in self.places})

    def _noise(self, number: int, place: int) -> int:
        """Any token."""
        return int(self._context.chance("noise", number, place) * self._size)

    def _stand(self, tokens: dict[int, int]) -> None:
        for place, token in tokens.items():
            self._tokens[place] = token
        self._context.preview(list(tokens), list(tokens.values()))

    def ask(
        self,
        sequence: Sequence,
        places: Seq[int],
        outputs: Outputs,
        stream: str,
        noise: float,
        text: Seq[int | None] = (),
    ) -> Passes:
        """A pass that tells some places, and the odds of what stands there; `text` is final."""
        prompt = list(self._context.prompt)
        first = len(prompt) - self._context.abilities.token_shift
        given = tuple(self._tokens[place] for place in places)
        result = yield from forward(
            sequence,
            [*prompt, *self._tokens, *self._context.abilities.closing_tokens],
            0,
            attention=BIDIRECTIONAL,
            rows=[first + place for place in places],
            outputs=replace(outputs, given=given, top=self._context.request.logprobs),
            stream=stream,
            canvas=CanvasRows(text=text or self._fixed, places=places),
            noise=noise,
        )
        self._others |= dict(zip(places, result.top, strict=False))
        return result

    def undo(self, result: ForwardResult, step: Step, number: int) -> None:
        """One step of the reverse process at every place."""
        clean = 1 - step.after
        survived = (1 - step.before) / clean
        fresh: dict[int, int] = {}
        for row, place in enumerate(self.places):
            stays = survived * (clean * result.chances[row] + step.after / self._size)
            changes = (1 - survived) / self._size
            self._logprobs[place] = result.given[row]
            if self._context.chance("stay", number, place) * (stays + changes) < stays:
                continue
            fresh[place] = self._noise(number, place)
            if self._context.chance("clean", number, place) < clean:
                fresh[place] = result.tokens[row]
                self._logprobs[place] = result.logprobs[row]
        self._stand(fresh)

    def renoise(self, result: ForwardResult, commit: Commit, step: Step, number: int) -> bool:
        """Keep what the policy chooses of the draws and make noise of the rest. Was all kept, and
        nothing new?"""
        rolled = [
            replace(found, chance=self._context.chance("commit", number, found.place))
            for found in candidates(self.places, result)
        ]
        chosen = rolled if not step.after else [rolled[i] for i in commit.choose(rolled, step)]
        fresh = {place: self._noise(number, place) for place in self.places}
        fresh |= {candidate.place: candidate.token for candidate in chosen}
        self._logprobs |= {candidate.place: candidate.logprob for candidate in chosen}
        same = all(self._tokens[place] == token for place, token in fresh.items())
        self._stand(fresh)
        return same and len(chosen) == len(rolled)

    def settle(
        self, sequence: Sequence
    ) -> Generator[list[ForwardRequest], list[ForwardResult], None]:
        """Draw again what may not stand beside likelier tokens, until all goes together."""
        settled: list[int] = []
        while len(settled) < len(self.places):
            ranked = sorted(self.places, key=lambda place: -self._logprobs[place])
            order = [*settled, *(place for place in ranked if place not in settled)]
            tokens = [self._tokens[place] for place in order]
            settled = [order[i] for i in self._context.compatible(self._fixed, order, tokens)]
            rest = [place for place in self.places if place not in settled]
            if not rest:
                break
            text = list(self._fixed)
            for place in settled:
                text[place] = self._tokens[place]
            stream = f"again {len(settled)}"
            result = yield from self.ask(sequence, rest, Outputs(), stream, 0.0, text)
            self._logprobs |= dict(zip(rest, result.logprobs, strict=True))
            self._stand(dict(zip(rest, result.tokens, strict=True)))

    def reveal(self) -> None:
        """Make all of it final."""
        self._context.reveal(
            self.places,
            [self._tokens[place] for place in self.places],
            [self._logprobs[place] for place in self.places],
            alternatives=[self._others[place] for place in self.places if self._others],
        )


class _Canvases:
    """One canvas after the other behind text that is read causally."""

    def __init__(self, method: UniformDiffusion, context: Context) -> None:
        self._method = method
        self._context = context
        self._board = list(context.canvas or [None] * context.max_new_tokens)
        """What the request fixes."""
        self._text = list(context.prompt)

    def decode(self) -> Decoding:
        """All canvases."""
        context, abilities = self._context, self._context.abilities
        for name in ("guide", "no_repeat_ngram"):
            if getattr(context.request, name):
                raise InvalidRequest(
                    f"{abilities.name} tells the tokens of a canvas all at once, whatever stands "
                    f"beside them; leave {name} out."
                )
        stored = done = 0
        with context.sequence() as sequence:
            while not context.finished:
                clean = self._text[stored:]
                yield from forward(sequence, clean, stored, rows=(), outputs=NOTHING)
                stored = len(self._text)
                end = done + min(abilities.canvas_length, abilities.context_length - stored)
                self._board += [None] * (end - len(self._board))
                found = yield from self._denoise(sequence, range(done, end))
                self._text += [candidate.token for candidate in found]
                made = [candidate for candidate in found if self._board[candidate.place] is None]
                context.reveal(
                    [candidate.place for candidate in made],
                    [candidate.token for candidate in made],
                    [candidate.logprob for candidate in made],
                    alternatives=[candidate.alternatives for candidate in made],
                )
                done = end

    def _denoise(
        self, sequence: Sequence, places: range
    ) -> Generator[list[ForwardRequest], list[ForwardResult], list[Candidate]]:
        """The likeliest tokens of a canvas in its last step."""
        method, request, start = self._method, self._context.request, sequence.length
        open_places = [place for place in places if self._board[place] is None]
        tokens = self._noise(-1, places)
        likeliest: list[Candidate] = []
        conditioning = None
        for number in range(method.steps):
            temperature = method.temperature(number)
            result = yield from forward(
                sequence,
                [tokens[place] for place in places],
                start,
                attention=Canvas(),
                rows=range(len(places)),
                outputs=Outputs(
                    belief=temperature,
                    best=1,
                    top=max(request.logprobs, 1),
                    margin=method.commit.reads_margin,
                ),
                sampling=replace(request, temperature=request.temperature * temperature),
                stream=f"step {number}",
                canvas=CanvasRows(text=self._board, places=places),
                conditioning=conditioning,
            )
            conditioning, before = result.embeddings, likeliest
            likeliest, drawn = [], []
            for found in candidates(places, result):
                row = found.place - places.start
                best, score = result.best[row][0]
                others = result.top[row]
                fixed = self._board[found.place]
                likeliest.append(
                    replace(
                        found,
                        token=best if fixed is None else fixed,
                        # Where penalties change the order, the score with them must do.
                        logprob=dict(others).get(best, min(score, 0.0)),
                        alternatives=others[: request.logprobs],
                    )
                )
                chance = self._context.chance("commit", number, found.place)
                drawn.append(replace(found, entropy=result.beliefs[row], chance=chance))
            self._context.preview(
                open_places, [likeliest[p - places.start].token for p in open_places]
            )
            stable = [c.token for c in before] == [c.token for c in likeliest]
            mean = sum(result.beliefs) / len(places)
            if method.sure is not None and stable and mean < method.sure:
                break
            tokens = self._noise(number, places)
            rolled = [drawn[place - places.start] for place in open_places]
            for index in method.commit.choose(rolled, Step(before=1.0, after=1.0, due=0)):
                tokens[rolled[index].place] = rolled[index].token
        return likeliest

    def _noise(self, number: int, places: range) -> dict[int, int]:
        """Any tokens, where none are fixed."""
        size = self._context.abilities.vocabulary_size
        noise = {p: int(self._context.chance("noise", number, p) * size) for p in places}
        return noise | {p: token for p in places if (token := self._board[p]) is not None}
