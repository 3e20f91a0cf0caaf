"""CALM decoding: one patch of several tokens after the other, from a network that draws vectors.

Shao et al., arXiv 2510.27688. Each pass draws the next patch's tokens at once. The network gives no
probabilities, so temperature acts by counting equal draws (`sampling/patches.py`): at 1 a patch is
drawn once, at 1/n draws that agree n times win, at 0 the most frequent wins. Between 0 and 1 that
is exact in the limit of many `candidates` only, and `logprobs` of tokens are estimates, shares of
the candidates. A patch's tokens behind an end token are dropped.

Texts are cut into patches from their start. What is left of a prompt whose length is no multiple of
the patch size has to be what the first drawn patch begins with: of the candidates those count that
do. If none does, the likeliest-looking one gets it in place of its own beginning. (The paper fills
the prompt up with padding instead, which here means the text's end, as in training.) Only a prompt
that is no patch at all is filled up like that, as the first patch of a text cannot be drawn.

Not here: controls that need probabilities, and shared prompt prefixes in the cache.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar

from anyorder.core.errors import InvalidRequest
from anyorder.core.forward import Decoding, Outputs, PatchDraw, forward
from anyorder.core.method import Context, Method, Needs
from anyorder.core.options import Range
from anyorder.core.request import Request

_DEFINED = {"prompt", "method", "options", "max_new_tokens", "n", "seed", "temperature", "stop"}
_DEFINED |= {"stop_tokens", "ignore_end", "canvas", "history", "prefix_cache", "cache_salt"}
"""Controls that mean something without probabilities, or that the engine looks after."""


@dataclass(frozen=True, kw_only=True)
class Calm(Method):
    """Several tokens at once, drawn as one vector."""

    needs: ClassVar[Needs] = Needs(patches=True)
    exact: ClassVar[bool] = False

    candidates: Annotated[
        int, Range(1, 4096), "draws of a patch at temperatures below 1, and after part of a patch"
    ] = 200

    def check(self, request: Request) -> None:
        """Temperatures are 0 or 1/n, and nothing may need probabilities."""
        neutral = Request(prompt="")
        for field in dataclasses.fields(Request):
            given, default = getattr(request, field.name), getattr(neutral, field.name)
            if field.name not in _DEFINED and given != default:
                raise InvalidRequest(
                    f"calm draws tokens without knowing their probabilities, so {field.name} "
                    f"cannot be honoured; leave it at {default!r}."
                )
        inverse = 1 / request.temperature if request.temperature else 0.0
        if abs(inverse - round(inverse)) > 0.02 * inverse or 0 < inverse < 0.98:
            raise InvalidRequest(
                "calm's temperature is 0 or 1 over a whole number (1, 0.5, 0.333, 0.25, ...), got "
                f"{request.temperature:g}."
            )

    def decode(self, context: Context) -> Decoding:
        import torch

        size, fill = context.abilities.patch_size, context.abilities.fill_token
        prompt = context.prompt
        whole = len(prompt) // size * size
        patches = [list(prompt[place : place + size]) for place in range(0, whole, size)]
        begins = tuple(prompt[whole:])
        if not patches:
            assert fill is not None, "networks that read patches have a token to fill them up"
            patches, begins = [[*begins, *[fill] * (size - len(begins))]], ()
            context.note(
                f"the prompt is shorter than a patch of {size} tokens and was filled up with "
                "the token that ends texts; longer prompts work better."
            )
        num_cached = 0
        with context.sequence() as sequence:
            while not context.finished:
                once = context.request.temperature >= 0.98 and not begins
                wanted = PatchDraw(candidates=1 if once else self.candidates, begins=begins)
                result = yield from forward(
                    sequence,
                    [patch[-1] for patch in patches],  # stand for their patches
                    num_cached,
                    conditioning=torch.tensor(patches),
                    outputs=Outputs(token=False, logprob=False, patch=wanted),
                )
                num_cached += len(patches)
                (patch,) = result.patches
                context.emit(patch.tokens[len(begins) :], patch.logprobs[len(begins) :])
                patches, begins = [patch.tokens], ()
