"""What methods need, how a lack is reported, and what an unfinished method does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pytest

from anyorder.core.errors import InvalidRequest, UnsupportedMethod
from anyorder.core.method import Abilities, Method, Needs
from anyorder.core.options import Range
from anyorder.core.request import Request

CAUSAL = Abilities(name="gpt2", vocabulary_size=10, context_length=8)
BOTH = Abilities(
    name="sdar",
    vocabulary_size=10,
    context_length=8,
    mask_token=9,
    attention=frozenset({"causal", "bidirectional"}),
)


@dataclass(frozen=True, kw_only=True)
class Planned(Method):
    """Needs everything there is."""

    needs: ClassVar[Needs] = Needs(
        attention="bidirectional", mask_token=True, roles=("target", "draft")
    )
    steps: Annotated[int, Range(1, 8), "steps per block"] = 4


@pytest.mark.parametrize(
    ("needs", "abilities", "roles", "missing"),
    [
        (Needs(), CAUSAL, ["target"], None),
        (Needs(), BOTH, ["target", "draft"], None),
        (Needs(mask_token=True), BOTH, ["target"], None),
        (Needs(mask_token=True), CAUSAL, ["target"], "a mask token; gpt2 has none"),
        (
            Needs(attention="bidirectional"),
            CAUSAL,
            ["target"],
            "bidirectional attention; gpt2 was trained with causal",
        ),
        (
            Needs(attention="causal"),
            Abilities(name="m", vocabulary_size=1, context_length=1, attention=frozenset()),
            ["target"],
            "causal attention; m was trained with ",
        ),
        (Needs(roles=("target", "draft")), BOTH, ["target", "draft"], None),
        (
            Needs(roles=("target", "draft")),
            BOTH,
            ["target", "encoder"],
            "a draft model; the engine has target, encoder",
        ),
    ],
)
def test_missing(needs: Needs, abilities: Abilities, roles: list[str], missing: str | None) -> None:
    assert needs.missing(abilities, roles) == missing


def test_a_zero_mask_token_is_a_mask_token() -> None:
    model = Abilities(name="m", vocabulary_size=1, context_length=1, mask_token=0)
    assert Needs(mask_token=True).missing(model, ["target"]) is None


def test_require() -> None:
    Planned.require("planned", BOTH, ["target", "draft"], ["planned"])
    with pytest.raises(UnsupportedMethod) as caught:
        Planned.require("planned", CAUSAL, ["target"], ["autoregressive", "beam_search"])
    assert str(caught.value) == (
        "planned needs a mask token; gpt2 has none. Methods this model supports: autoregressive, "
        "beam_search."
    )


@pytest.mark.parametrize("steps", [0, 9, 1.0, None, "4"])
def test_options_are_checked_when_made(steps: Any) -> None:
    assert Planned(steps=8).steps == 8
    with pytest.raises(InvalidRequest, match="steps must be an integer from 1 to 8"):
        Planned(steps=steps)


def test_the_base_method_is_unfinished() -> None:
    method = Method()
    method.check(Request(prompt="x"))
    assert method.exact and not method.scores_prompt and not method.makes_choices
    with pytest.raises(AssertionError, match="Planned does not define decode"):
        Planned().decode(None)  # type: ignore[arg-type]
