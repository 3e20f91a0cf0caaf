"""Early exit: the target's own lower layers draft, read out by its last norm and head.

Self-speculation, as in LayerSkip (Elhoushi et al., 2024, arXiv:2404.16710) and Draft & Verify
(Zhang et al., 2023, arXiv:2309.08168; that one skips layers in between, this one the upper ones).
It drafts on the target's own sequence, so the lower layers' keys and values of the text are there
already, and needs no memory of its own. The check computes the drafted tokens' lower layers again.

Models trained to be left early (LayerSkip's) draft well, others badly. Guidance, penalties and
truncation apply to drafts as they do to the text. Not here: that training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from anyorder.core.drafter import Draft, Drafter, DraftSession, Proposing
from anyorder.core.errors import RequestFailed
from anyorder.core.forward import Outputs, forward
from anyorder.core.options import Range

if TYPE_CHECKING:
    from anyorder.core.method import Abilities, Context
    from anyorder.core.sequence import Sequence


@dataclass(frozen=True, kw_only=True)
class EarlyExit(Drafter):
    """The target's own lower layers write the next tokens."""

    layers: Annotated[
        int | None, Range(1), "lower layers that draft; none: a third of the target's"
    ] = None
    confidence: Annotated[
        float, Range(0, 1), "stop after a token that the lower layers found less likely than this"
    ] = 0.0

    draws: ClassVar[bool] = True

    def missing(self, models: Mapping[str, Abilities]) -> str | None:
        target = models["target"]
        if self._num_layers(target) > target.num_layers:
            return f"a model of {self.layers} layers or more; {target.name} has {target.num_layers}"
        return None

    def seconds(self, context: Context, limit: int) -> float:
        num_layers = self._num_layers(context.abilities)
        each = context.pass_seconds(1, layers=num_layers)
        if each is None:  # not tried yet: as layers go
            share = num_layers / context.abilities.num_layers
            each = share * (context.pass_seconds(1) or 0.0)
        return limit * each

    def open(self, context: Context, *, sequence: Sequence, coupled: bool) -> DraftSession:
        samples = context.request.temperature > 0 and not coupled
        return _Drafting(self.confidence, self._num_layers(context.abilities), sequence, samples)

    def _num_layers(self, target: Abilities) -> int:
        return -(-target.num_layers // 3) if self.layers is None else self.layers


class _Drafting(DraftSession):
    def __init__(
        self, confidence: float, num_layers: int, sequence: Sequence, samples: bool
    ) -> None:
        self._confidence = confidence
        self._num_layers = num_layers
        self._sequence = sequence
        self._samples = samples
        """Draw with random numbers of its own, and hand on what from."""

    def expects(self) -> int:
        return 0

    def propose(self, text: Seq[int], limit: int) -> Proposing:
        tokens: list[int] = []
        proposals: list[Any] = []
        outputs = Outputs()
        if self._samples:
            outputs = Outputs(token=False, logprob=False, draws=1, distribution=True)
        while len(tokens) < limit:
            try:
                result = yield from forward(
                    self._sequence,
                    [tokens[-1] if tokens else text[-1]],
                    len(text) - 1 + len(tokens),
                    outputs=outputs,
                    stream="early exit" if self._samples else None,
                    layers=self._num_layers,
                )
            except RequestFailed:
                break  # nothing can follow, as after a guide's end; the check will see
            if self._samples:
                (token,), proposal = result.draws[0], result.distributions[0]
                proposals.append(proposal)
                probability = float(proposal[token])
            else:
                (token,), probability = result.tokens, math.exp(result.logprobs[0])
            tokens.append(token)
            # An unlikely token is proposed all the same: leaving out what was drawn because of
            # what it is would shift the ratio rule's distribution.
            if probability < self._confidence:
                break
        return Draft(tokens=tokens, proposals=proposals)
