"""Block diffusion: blocks from left to right, each filled in any order after clean ones.

BD3-LM (arXiv 2503.09573), SDAR (arXiv 2510.06303), Fast-dLLM v2 (arXiv 2509.26328), LLaDA2.0 and
2.1 (arXiv 2512.15745, 2602.08676). A token sees its own block from both sides and what is before
it. Blocks are counted from the start of the prompt, whose last, partial block is filled up together
with the first new tokens.

Keys and values of clean blocks are cached, which changes nothing: they depend on nothing behind
them. While a block is filled, only its own tokens run. It is stored by one pass over its clean
tokens, and that pass tells the next block's places as well. Fixed tokens of a canvas are seen from
within their own block and from behind. Blocks of one token, with a token shift, are autoregressive
decoding.

Networks that write token by token too (Set Block Decoding, arXiv 2509.04185; TiDAR, arXiv
2511.08923) read clean text from left to right, and share its cache with `autoregressive`. Theirs
have samplers that check what was filled in as well: that is `speculative` with `own_block`.

Networks with a token shift tell a block's first place by the block before it, which no longer
changes: what was told in the block's first pass holds for all of its steps. A guide may not let it
stand beside what was placed since; the block before is then run once more to tell it anew.

With `in_flight` above 1, blocks are filled beside each other (D2F, arXiv 2508.09192): the next one
is begun once `open_at` of the last one's places are filled. Behind an unfinished block only what
`commit` takes by itself is taken (all above a threshold, and not the best one in any case); where
every block before it is finished, it goes on as ever. Such places saw masks before them, which only
networks trained for it expect: approximate. What is cached is exact all the same, since a block is
stored when it and all before it are clean. D2F's own sampler is `in_flight` as many as there are
blocks, `open_at=0.1` and `commit=threshold`; it counts a block of which 95% is filled as finished.

`cache` goes without it while a block is filled in windows, approximately (Fast-dLLM v2's sub-block
cache): a window's passes but the first take from the cache what the first one computed of the block
before the window (prefix), or of all but the window (dual; what is behind it runs once more).

Published samplers are options, and the default on their checkpoints. SDAR's are `commit=threshold`
with a level of 0.85 (low_confidence_dynamic), `confidence`, `sequential` or `entropy_bound`;
LLaDA2.0's is `threshold` with 0.95, LLaDA2.1's adds `revise=edit`; Fast-dLLM v2's is `threshold`
with 0.9, `window=8` for sub-blocks and `first=clean`. All measure after temperature and truncation,
`judge=processed`. Their `steps` are a floor under the places of every step, which are counted anew
here from what is still open: the two agree where steps are as many as places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from anyorder.core.attention import (
    BIDIRECTIONAL,
    Attention,
    Blocks,
    TextThenBlocks,
)
from anyorder.core.errors import InvalidRequest
from anyorder.core.forward import (
    NOTHING,
    CanvasRows,
    Decoding,
    Outputs,
    forward,
)
from anyorder.core.method import Abilities, Context
from anyorder.core.options import Part, Range
from anyorder.core.sequence import Sequence
from anyorder.sampling.canvas_method import CanvasMethod, WindowCache, WindowLast
from anyorder.sampling.denoising import (
    Answer,
    Denoising,
    Ends,
    Passes,
    Plan,
    Question,
    Questions,
    candidates,
    following,
)
from anyorder.sampling.revision.keep import Keep
from anyorder.sampling.unmasking import Candidate, Commit
from anyorder.sampling.unmasking.sequential import Sequential
from anyorder.sampling.unmasking.threshold import Threshold

_AT_ONCE = Plan(commit=Sequential(), revise=Keep(), schedule="linear", steps=None)


@dataclass(frozen=True, kw_only=True)
class BlockDiffusion(CanvasMethod):
    """Fill blocks from left to right, each in any order, with the blocks before it cached."""

    block_size: Annotated[
        int | None, Range(1), "tokens of a block; none: what the network was trained with"
    ] = None
    commit: Annotated[Commit, Part("sampling/unmasking"), "which places a step makes final"] = (
        field(default_factory=Threshold)
    )
    first: Annotated[
        Literal["any", "clean"],
        "a block's first token: in any order, or before all, from the clean block before it",
    ] = "any"
    in_flight: Annotated[
        int, Range(1), "blocks that are filled beside each other; more than 1 is approximate"
    ] = 1
    open_at: Annotated[
        float, Range(0.0, 1.0), "in flight: share of a block that is filled when the next begins"
    ] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.in_flight > 1 and (
            self.revise.revises or self.first == "clean" or self.cache != "none"
        ):
            given = "first=clean" if self.first == "clean" else "a revise policy"
            if self.cache != "none":
                given = f"cache={self.cache}"
            raise InvalidRequest(
                f"in_flight={self.in_flight} does not go with {given}, which wants the blocks "
                "before it finished; set in_flight=1, or leave the other out."
            )

    @property
    def keeps_distribution(self) -> bool:
        """Nothing unfinished is looked at, and one place a step chosen blindly."""
        return self.in_flight == 1 and super().keeps_distribution

    def missing(self, models: Mapping[str, Abilities]) -> str | None:
        """A block size, of the network or given; a token shift, to ask clean tokens."""
        target = models["target"]
        if self.block_size is None and not target.block_size:
            return f"block_size; {target.name} was not trained on blocks"
        if self.first == "clean" and not target.token_shift:
            return f"first=any; {target.name} tells a place by its mask, not by the token before it"
        return None

    def cached_length(self, num_tokens: int, abilities: Abilities) -> int:
        """Whole blocks, as far as the context reaches."""
        size = self.block_size or abilities.block_size
        return min(-(-num_tokens // size) * size, abilities.context_length)

    def decode(self, context: Context) -> Decoding:
        own, size = context.abilities.block_size, self.block_size or context.abilities.block_size
        if size != own:
            trained = f"on blocks of {own} tokens" if own else "without blocks"
            context.note(
                f"{context.abilities.name} was trained {trained}, not on blocks of {size}."
            )
        if self.in_flight > 1:
            context.note(f"in_flight={self.in_flight} shows blocks unfinished ones before them.")
        self.note_cache(context)
        text = list(context.canvas or [None] * context.max_new_tokens)
        num_prompt, flight = len(context.prompt), list[_Block]()
        starts = list(range(-(num_prompt % size), len(text), size))[::-1]
        with context.sequence() as sequence:
            passes = _Passes(context, sequence, text, size, self.cache)
            while (starts or flight) and not context.finished:
                while flight and flight[0].question is None:
                    del flight[0]
                # Blocks behind the end of the text, begun before it was known, are left.
                ended = next((n for n, block in enumerate(flight[:-1], 1) if block.ends), None)
                flight = flight[:ended]
                while starts and (not flight or self._opens(flight)):
                    flight.append(_Block(self, context, text, starts.pop(), size))
                yield from _step(flight, passes)

    def _opens(self, flight: list[_Block]) -> bool:
        """May another block be begun?"""
        last = flight[-1]
        return (
            len(flight) < self.in_flight
            and last.share >= self.open_at
            and not any(block.ends for block in flight)
        )


def _step(flight: list[_Block], passes: _Passes) -> Decoding:
    """Ask once for all blocks that ask, and let them go on."""
    asking = [(block, block.question) for block in flight if block.question is not None]
    if not asking:
        return
    places = [place for _, question in asking for place in question.places]
    (_, first), *others = asking
    stream = first.stream
    if others:
        stream = f"flight {passes.num_joint}"
        passes.num_joint += 1
    found = yield from passes.ask(places, first.outputs, stream, asking[0][0].window)
    by_place = {candidate.place: candidate for candidate in found}
    for order, (block, question) in enumerate(asking):
        own = [by_place[place] for place in question.places]
        block.hear(Answer(candidates=own, ahead=order > 0))


class _Block:
    """A block that is being filled."""

    def __init__(
        self,
        options: BlockDiffusion,
        context: Context,
        text: list[int | None],
        start: int,
        size: int,
    ) -> None:
        self._options, self._context, self._text = options, context, text
        self._start, self._size = start, size
        self._is_end = Ends(context)
        self.window = range(start, start + size)
        """What of it is being filled; counted from the prompt's end."""
        self._questions = self._fill()
        self.question: Question | None = next(self._questions, None)
        """What it asks of the next pass; None: it is full, or the text is over."""

    def _fill(self) -> Questions:
        options, context, text, start = self._options, self._context, self._text, self._start
        if options.first == "clean" and start >= 0 and text[start] is None:
            yield from Denoising(context, text, range(start, start + 1), _AT_ONCE).questions()
        for window in options.windows(range(start, start + self._size)):
            self.window = window
            places = range(max(window.start, 0), min(window.stop, len(text)))
            yield from Denoising(context, text, places, options.plan).questions()

    def hear(self, answer: Answer) -> None:
        """Go on to the next question."""
        self.question = following(self._questions, answer)

    @property
    def _tokens(self) -> list[int | None]:
        """What of it is new text."""
        return self._text[max(self._start, 0) : self._start + self._size]

    @property
    def share(self) -> float:
        """How much of it is filled."""
        return 1 - self._tokens.count(None) / len(self._tokens)

    @property
    def ends(self) -> bool:
        """Does the text end in it?"""
        return any(token is not None and self._is_end(token) for token in self._tokens)


class _Passes:
    """Passes over the blocks that are being filled, and over those not stored yet."""

    def __init__(
        self,
        context: Context,
        sequence: Sequence,
        text: list[int | None],
        size: int,
        cache: WindowCache,
    ) -> None:
        self._context = context
        self._sequence = sequence
        self._text = text
        self._size = size
        self._cache = cache
        self._window = range(0)
        """The window that the last pass ran with its whole block, ..."""
        self._behind = False
        """... and whether what is behind it is stored before it."""
        self._stored = 0
        """Clean tokens in the cache: whole blocks."""
        self._first: Candidate | None = None
        """What the block before told of this block's first place, with a token shift ..."""
        self._first_text: list[int | None] = []
        """... when this stood on the canvas."""
        self.num_joint = 0
        """Passes over several blocks at once; each draws with other numbers."""

    def ask(self, places: list[int], outputs: Outputs, stream: str | None, window: range) -> Passes:
        """See sampling.denoising.Ask; `window` is the first place's."""
        abilities, prompt = self._context.abilities, self._context.prompt
        assert abilities.mask_token is not None, "refused without one"
        shift = int(abilities.token_shift)
        start = (len(prompt) + places[0]) // self._size * self._size
        is_causal = abilities.clean_text == "causal"
        if is_causal and not self._stored:
            # The prompt by itself, as other methods run it, so that prefixes are shared with them;
            # with a shift without the token that tells the next block's first place.
            head = prompt[: max(len(prompt) // self._size * self._size - shift, 0)]
            if head:
                yield from forward(self._sequence, head, 0, rows=(), outputs=NOTHING)
            self._stored = len(head)
        begin = self._stored
        if shift and self._is_stale(places[0], start):
            begin = max(start - self._size, 0)
        # Clean blocks do not see the one behind them: where they alone are asked, they run alone.
        last = (len(prompt) + max(places)) // self._size * self._size
        end = min(last + self._size, abilities.context_length)
        again = window == self._window and begin == start and self._cache != "none"
        if again:
            begin = max(len(prompt) + window.start - shift, start)
        told = [place for place in places if len(prompt) + place - shift >= begin]
        if not told:
            assert self._first is not None, "told in the block's first pass"
            return [self._first]
        if len(prompt) + max(told) - shift < start:
            end = start
        self._window = window if end > start else range(0)
        line = self._line(begin, end)
        tokens, stored = line, begin
        attention: Attention = Blocks(size=self._size)
        if is_causal:
            attention = TextThenBlocks(num_text=start - begin, size=self._size)
        if again:
            attention = BIDIRECTIONAL
            stop = min(len(prompt) + window.stop, end)
            if self._cache == "dual" and stop < end:
                attention = WindowLast(size=stop - begin, behind=end - stop)
                tokens, stored = line[: stop - begin], begin + end - stop
                if not self._behind:
                    tokens = [*line[stop - begin :], *tokens]
        run_from = stored if self._behind else begin
        self._behind = stored > begin
        result = yield from forward(
            self._sequence,
            tokens,
            run_from,
            attention=attention,
            # `stored` is where the first of them that may be asked is stored.
            rows=[stored - run_from + len(prompt) + place - shift - begin for place in told],
            outputs=outputs,
            stream=stream,
            canvas=CanvasRows(text=tuple(self._text), places=told),
        )
        found = candidates(told, result)
        if begin < start:
            # The blocks before are clean, and stored now.
            self._stored = start
            self._first = next((c for c in found if len(prompt) + c.place == start), None)
            self._first_text = list(self._text)
        if len(told) < len(places):
            assert self._first is not None, "told in the block's first pass"
            found = [self._first, *found]
        return found

    def _line(self, begin: int, end: int) -> list[int]:
        """The tokens from one position to another: prompt, text, and masks where nothing stands."""
        prompt, mask = self._context.prompt, self._context.abilities.mask_token
        assert mask is not None, "refused without one"
        first = max(begin - len(prompt), 0)
        text = self._text[first : max(end - len(prompt), 0)]
        line = [*prompt[begin:end], *(mask if token is None else token for token in text)]
        return line + [mask] * (end - begin - len(line))

    def _is_stale(self, place: int, start: int) -> bool:
        """Is this the block's first place, and may a guide not let stand there what was told
        before others were placed?"""
        is_first = len(self._context.prompt) + place == start == self._stored
        guided = self._context.request.guide is not None
        return guided and is_first and self._first_text != self._text
