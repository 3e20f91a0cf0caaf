"""Masked diffusion: a canvas of masks after the prompt, filled in any order.

Every pass sees prompt and canvas from both sides and tells all masked places at once; the commit
policy says which become final. LLaDA (arXiv 2502.09992), Dream (arXiv 2508.15487), MDLM (arXiv
2406.07524), ReMDM (arXiv 2503.00307). The canvas is as long as `max_new_tokens`, or it is the
request's own, whose fixed tokens are filled around. What lies behind an end token is not filled.

Samples of the model's own distribution are drawn at temperature 1 by `commit=random` one place a
step (first-hitting), or by `commit=ancestral` as `steps` grow. Other policies and several places a
step are faster or better liked, and not exact. Nothing is cached: every token sees every other.

Networks with a token shift tell a place by the token before it, as autoregressive ones do.

Published samplers are options. LLaDA's are the defaults, with its blocks as `window` (confidence
after guidance is `judge=processed`). Dream's are `schedule=late` and `judge=processed` with
`commit=entropy`, `confidence` (its maskgit_plus), `margin` (topk_margin) or `ancestral` (origin).
What a checkpoint's authors recommend is the default on it: entropy and processed on Dream's.
"""

from __future__ import annotations

from dataclasses import dataclass

from anyorder.core.errors import InvalidRequest
from anyorder.core.forward import BIDIRECTIONAL, CanvasRows, Decoding, Outputs, forward
from anyorder.core.method import Context
from anyorder.sampling.canvas_method import CanvasMethod
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
        mask_token = context.abilities.mask_token
        assert mask_token is not None, "refused without one"
        prompt, shift = context.prompt, int(context.abilities.token_shift)
        if context.abilities.block_size:
            context.note(
                f"{context.abilities.name} was trained on blocks of "
                f"{context.abilities.block_size} tokens, which masked_diffusion does not respect."
            )
        with context.sequence() as sequence:

            def ask(places: list[int], outputs: Outputs, stream: str | None) -> Passes:
                canvas = [mask_token if token is None else token for token in text]
                result = yield from forward(
                    sequence,
                    [*prompt, *canvas, *context.abilities.closing_tokens],
                    0,
                    attention=BIDIRECTIONAL,
                    rows=[len(prompt) + place - shift for place in places],
                    outputs=outputs,
                    stream=stream,
                    canvas=CanvasRows(text=tuple(text), places=places),
                    noise=text.count(None) / len(text),
                )
                return candidates(places, result)

            for places in self.windows(range(len(text))):
                yield from Denoising(context, text, places, self.plan).run(ask)
                if context.finished:
                    break
