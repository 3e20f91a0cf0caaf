"""What masked and block diffusion have in common: how places of a canvas are filled."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from anyorder.core.attention import Bidirectional
from anyorder.core.errors import InvalidRequest
from anyorder.core.method import Context, Method, Needs
from anyorder.core.options import Part, Range
from anyorder.core.request import Request
from anyorder.sampling.denoising import EndOrder, Plan, check_plan
from anyorder.sampling.revision import Revision
from anyorder.sampling.revision.keep import Keep
from anyorder.sampling.unmasking import Commit, Schedule
from anyorder.sampling.unmasking.confidence import Confidence

WindowCache = Literal["none", "prefix", "dual"]


@dataclass(frozen=True, kw_only=True)
class CanvasMethod(Method):
    """Base of methods that fill a canvas, or its blocks, in denoising steps."""

    needs: ClassVar[Needs] = Needs(attention="bidirectional", mask_token=True)
    exact: ClassVar[bool] = False
    fills_canvas: ClassVar[bool] = True
    may_begin: ClassVar[bool] = True

    steps: Annotated[
        int | None,
        Range(1),
        "denoising steps of a canvas, block or window; none: a place a step at least",
    ] = None
    schedule: Annotated[Schedule, "how many places are open after which share of the steps"] = (
        "linear"
    )
    window: Annotated[
        int | None, Range(1), "fill windows of so many places from left to right; none: all at once"
    ] = None
    commit: Annotated[Commit, Part("sampling/unmasking"), "which places a step makes final"] = (
        field(default_factory=Confidence)
    )
    revise: Annotated[Revision, Part("sampling/revision"), "which tokens a step takes back"] = (
        field(default_factory=Keep)
    )

    judge: Annotated[
        Literal["model", "processed"],
        "policies look at the model's own distribution, or at it after guidance, temperature, ...",
    ] = "model"
    ends: Annotated[
        EndOrder,
        "end tokens are placed like others, or last: where a step has nothing else left to place",
    ] = "any"
    cache: Annotated[
        WindowCache,
        "what a window's passes but the first do not run again: nothing, what is before it, or all "
        "but the window; approximate",
    ] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_plan(self.plan)

    def check(self, request: Request) -> None:
        """A second text with a prompt of its own is not laid out again."""
        if self.cache == "dual" and request.guidance_scale != 1.0:
            raise InvalidRequest(
                "guidance does not go with cache=dual; use cache=prefix, or no guidance_scale."
            )

    def note_cache(self, context: Context) -> None:
        """Tell what `cache` makes of the text."""
        if self.cache != "none":
            context.note(f"cache={self.cache} shows a window the rest as it was at its first pass.")

    @property
    def plan(self) -> Plan:
        """How a window is filled."""
        return Plan(
            commit=self.commit,
            revise=self.revise,
            schedule=self.schedule,
            steps=self.steps,
            processed=self.judge == "processed",
            ends=self.ends,
        )

    @property
    def keeps_distribution(self) -> bool:
        """Nothing stale is looked at, and one place a step chosen blindly: the chain rule in that
        order."""
        return self.cache == "none" and self.plan.is_exact

    def windows(self, places: range) -> Iterator[range]:
        """`places` from left to right in windows."""
        size = self.window or len(places)
        for first in range(places.start, places.stop, size):
            yield range(first, min(first + size, places.stop))


@dataclass(frozen=True, kw_only=True)
class WindowLast(Bidirectional):
    """A window that runs behind what follows it in the text, or alone, at its own positions: what
    is stored before it stays when it runs again."""

    size: int
    behind: int
    """Tokens that follow it in the text."""

    def depths(self, num_tokens: int) -> Seq[int]:
        before = num_tokens - self.size - self.behind
        others = [*range(before), *range(before + self.size, num_tokens)] if before >= 0 else []
        return [*others, *range(before, before + self.size)]
