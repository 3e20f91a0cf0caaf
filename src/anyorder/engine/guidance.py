"""Classifier-free guidance for any method: every request has an unconditional twin.

The twin runs the same new tokens after the negative prompt instead of the prompt, in a sequence of
its own, and the runner contrasts the two logits before anything is drawn (Sanchez et al., 2023,
arXiv:2306.17806). For contrastive decoding the twin is a sequence of another role and keeps the
prompt. Methods never see it. A fork's twin is computed anew; the prefix cache makes that cheap.
"""

from __future__ import annotations

from anyorder.core.attention import Causal
from anyorder.core.forward import (
    NOTHING,
    ForwardRequest,
)
from anyorder.core.sequence import Sequence


def unconditional(
    request: ForwardRequest, twin: Sequence, *, num_prompt: int, negative: list[int]
) -> ForwardRequest:
    """What to run on `twin` so that it answers for `request` without the prompt.

    A request that touches the prompt makes the twin begin anew. Rows before the prompt's last token
    have no counterpart.
    """
    if request.start < num_prompt:
        start = 0
    else:
        start = min(twin.length, request.start - num_prompt + len(negative))
    text = [*negative, *[*request.sequence.tokens, *request.tokens][num_prompt:]]
    shift = request.start - num_prompt + len(negative) - start
    tokens = text[start:]
    assert (
        isinstance(request.attention, Causal)
        or len(tokens) == len(request.tokens)
        or (request.start < num_prompt)
    ), "a two-way request needs its past to be cached before guidance can follow it"
    return ForwardRequest(
        sequence=twin,
        tokens=tokens,
        start=start,
        attention=request.attention,
        rows=[row + shift for row in request.output_rows if request.start + row >= num_prompt - 1],
        outputs=NOTHING,
        canvas=request.canvas,
        layers=request.layers,
        conditioning=request.conditioning if len(tokens) == len(request.tokens) else None,
        noise=request.noise,
    )
