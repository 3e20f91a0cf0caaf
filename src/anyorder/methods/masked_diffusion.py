"""Masked diffusion: a canvas of masks after the prompt, filled in any order.

Every pass sees prompt and canvas from both sides and tells all masked places at once; the commit
policy says which become final. LLaDA (arXiv 2502.09992), Dream (arXiv 2508.15487), MDLM (arXiv
2406.07524), ReMDM (arXiv 2503.00307). The canvas is as long as `max_new_tokens`, or it is the
request's own, whose fixed tokens are filled around. What lies behind an end token is not filled.

Samples of the model's own distribution are drawn at temperature 1 by `commit=random` one place a
step (first-hitting), or by `commit=ancestral` as `steps` grow. Other policies and several places a
step are faster or better liked, and not exact.

Nothing is cached, since every token sees every other, unless `cache` says so, approximately: a
window's first pass runs over everything, and its further passes take from the cache what was
computed before the window, or all but the window (prefix and dual cache, Fast-dLLM, arXiv
2505.22618). With a token shift, the token that tells the window's first place runs with it.

Networks with a token shift tell a place by the token before it, as autoregressive ones do.

Published samplers are options. LLaDA's are the defaults, with its blocks as `window` (confidence
after guidance is `judge=processed`). Of its switches against texts that end too soon,
confidence_eos_eot_inf is `ends=last`, as it is meant, and logits_eos_inf is a `min_new_tokens` of
`max_new_tokens`. Dream's are `schedule=late` and `judge=processed` with `commit=entropy`,
`confidence` (its maskgit_plus), `margin` (topk_margin) or `ancestral` (origin). What a checkpoint's
authors recommend is the default on it: entropy and processed on Dream's.
"""

from __future__ import annotations

from dataclasses import dataclass

from anyorder.core.attention import BIDIRECTIONAL, Bidirectional
from anyorder.core.errors import InvalidRequest
from anyorder.core.forward import (
    CanvasRows,
    Decoding,
    Outputs,
    forward,
)
from anyorder.core.method import Context
from anyorder.core.sequence import Sequence
from anyorder.sampling.canvas_method import CanvasMethod, WindowCache, WindowLast
from anyorder.sampling.denoising import Denoising, Passes, candidates


@dataclass(frozen=True, kw_only=True)
class MaskedDiffusion(CanvasMethod):
    """Fill a canvas of masks in any order, seeing all of it in every pass."""

    def check_length(self, num_tokens: int) -> None:
        """Windows have to divide the canvas."""
        if self.window is not None and num_tokens % self.window:
            raise InvalidRequest(
                f"windows of {self.window} places do not divide a canvas of {num_tokens}; choose "
                "window or max_new_tokens so that they do."
            )

    def decode(self, context: Context) -> Decoding:
        text = list(context.canvas or [None] * context.max_new_tokens)
        if context.abilities.block_size and not context.abilities.whole_canvas:
            context.note(
                f"{context.abilities.name} was trained on blocks of "
                f"{context.abilities.block_size} tokens, which masked_diffusion does not respect."
            )
        self.note_cache(context)
        with context.sequence() as sequence:
            for places in self.windows(range(len(text))):
                window = _Window(context, sequence, text, places, self.cache)
                yield from Denoising(context, text, places, self.plan).run(window.ask)
                if context.finished:
                    break


class _Window:
    """Passes that tell the places of one window."""

    def __init__(
        self,
        context: Context,
        sequence: Sequence,
        text: list[int | None],
        places: range,
        cache: WindowCache,
    ) -> None:
        self._context = context
        self._sequence = sequence
        self._text = text
        self._cache = cache
        # Of prompt, text and what closes it, the tokens that every pass runs.
        num_prompt = len(context.prompt)
        self._first = num_prompt + places.start - context.abilities.token_shift
        self._end = num_prompt + places.stop
        self._cached = False

    def ask(self, places: list[int], outputs: Outputs, stream: str | None) -> Passes:
        """See sampling.denoising.Ask."""
        text, abilities = self._text, self._context.abilities
        mask_token = abilities.mask_token
        assert mask_token is not None, "refused without one"
        prompt, first, end = self._context.prompt, self._first, self._end
        line = [*prompt, *(mask_token if t is None else t for t in text), *abilities.closing_tokens]
        attention: Bidirectional = BIDIRECTIONAL
        if self._cache == "dual":
            behind = len(line) - end
            attention = WindowLast(size=end - first, behind=behind)
            tokens = line[first:end]
            start = before = first + behind
            if not self._cached:
                tokens, start = [*line[:first], *line[end:], *tokens], 0
        else:
            start = first if self._cached and self._cache == "prefix" else 0
            tokens, before = line[start:], first
        self._cached = True
        shift = int(abilities.token_shift)
        result = yield from forward(
            self._sequence,
            tokens,
            start,
            attention=attention,
            # `before` is where the window's tokens are stored.
            rows=[before - start + len(prompt) + place - shift - first for place in places],
            outputs=outputs,
            stream=stream,
            canvas=CanvasRows(text=tuple(text), places=places),
            noise=text.count(None) / len(text),
        )
        return candidates(places, result)
