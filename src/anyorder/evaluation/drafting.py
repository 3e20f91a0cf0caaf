"""How well a drafter guesses: tokens accepted per check and per pass, on held-out prompts.

The mean accepted length is counted over all checks of all prompts, so that long answers weigh more
than short ones; it holds the token that the target adds to the accepted ones. Passes are those of a
request: tokens per pass of the target says what is gained where the target's passes cost all, and
tokens per pass of all models what is gained where they cost the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

from anyorder.core.errors import UserError
from anyorder.core.request import Prompt, Request
from anyorder.engine.engine import Engine
from anyorder.evaluation.generation import answers


@dataclass(frozen=True, kw_only=True)
class Drafting:
    """Of one drafter on some prompts."""

    num_prompts: int
    num_new_tokens: int
    mean_accepted_length: float | None
    """None: nothing was checked."""
    tokens_per_target_pass: float
    tokens_per_pass: float
    seconds: float


def drafting(
    engine: Engine,
    prompts: Seq[Prompt],
    controls: Request,
    *,
    in_flight: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> Drafting:
    """Answer every prompt with these controls, one after the other unless told otherwise."""
    if not prompts:
        raise UserError("there is no prompt to measure drafting on.")
    started = time.perf_counter()
    num_new = num_checks = num_checked = num_passes = num_target_passes = 0
    requests = (replace(controls, prompt=prompt) for prompt in prompts)
    for done, answer in enumerate(answers(engine, requests, in_flight=in_flight), 1):
        report = answer.completion.report
        num_new += report.num_new_tokens
        num_passes += report.num_forward_passes
        num_target_passes += report.passes_by_role["target"]
        num_checks += answer.num_checks
        num_checked += answer.num_checked
        if progress is not None:
            progress("answering", done, len(prompts))
    return Drafting(
        num_prompts=len(prompts),
        num_new_tokens=num_new,
        mean_accepted_length=num_checked / num_checks if num_checks else None,
        tokens_per_target_pass=num_new / num_target_passes,
        tokens_per_pass=num_new / num_passes,
        seconds=time.perf_counter() - started,
    )
