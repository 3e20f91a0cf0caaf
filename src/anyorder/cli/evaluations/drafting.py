"""How well drafters guess for one MODEL: accepted length, tokens per pass, speed.

Every prompt is answered alone, as speculation is for answers that are waited for, unless
--in-flight says otherwise: that is quicker to measure, and drafts then pay less.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from anyorder.cli.evaluations.data import PromptItem, open_prompts
from anyorder.cli.evaluations.models import Shown, controls, load_shown, name_of_model
from anyorder.cli.numbers import whole_number
from anyorder.core import lookup
from anyorder.core.errors import InvalidRequest, UserError
from anyorder.core.options import build
from anyorder.core.request import Request

if TYPE_CHECKING:
    from anyorder.evaluation.tables import Cell, Table
    from anyorder.model.loaded import LoadedModel

FLAGS = frozenset({"quantize", "part", "num", "draft", "prompt_tokens", "in_flight"})
TAKES_REQUEST = True
_NUM = 40
_NEW_TOKENS = 128
_PROMPT_TOKENS = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this task alone."""
    add = parser.add_argument_group("drafting").add_argument
    add("--draft", metavar="MODEL", nargs="+", help="drafters to compare [what -o drafter= says]")
    add("--in-flight", metavar="N", help="prompts answered at a time [1]")


def measure(arguments: argparse.Namespace, shown: Shown) -> Table:
    """A row without drafting, and one for each drafter."""
    from anyorder.evaluation.tables import Column, Table
    from anyorder.model.loaded import load_draft

    if len(arguments.models) > 1:
        raise InvalidRequest(
            f"drafting is measured for one model, got {len(arguments.models)}; drafters go behind "
            "--draft."
        )
    (name,) = arguments.models
    plain = controls(arguments, {"max_new_tokens": _NEW_TOKENS, "method": "speculative"})
    target = load_shown(name, shown, dtype=arguments.dtype, quantize=arguments.quantize)
    if target.tokenizer is None:
        raise UserError(f"{name} has no tokenizer, so it cannot answer text.")
    items = open_prompts(
        arguments.data,
        arguments.part,
        target.tokenizer,
        num=whole_number("--num", arguments.num, _NUM),
        num_prompt_tokens=whole_number("--prompt-tokens", arguments.prompt_tokens, _PROMPT_TOKENS),
    )
    in_flight = whole_number("--in-flight", arguments.in_flight, 1)
    usual = replace(plain, method="autoregressive", options={})
    rows = [_row("(none)", {"target": target}, items, usual, in_flight, shown)]
    for draft in arguments.draft or [None]:
        models = {"target": target}
        if draft is not None:
            models |= load_draft(
                draft,
                target,
                dtype=arguments.dtype,
                quantize=arguments.quantize,
                progress=shown,
            )
        label = name_of_model(draft) if draft is not None else _drafter_of(plain)
        rows.append(_row(label, models, items, plain, in_flight, shown))
    columns = (
        Column(key="model", title="drafter"),
        Column(key="method", title="method"),
        Column(key="mean_accepted_length", title="mean accepted"),
        Column(key="tokens_per_target_pass", title="tokens/target pass"),
        Column(key="tokens_per_pass", title="tokens/pass"),
        Column(key="tokens_per_second", title="tokens/s", digits=1, ratio=True),
    )
    notes = [
        f"Target: {name_of_model(name)}; {len(items)} prompts of {' '.join(arguments.data)}, at "
        f"most {plain.max_new_tokens} new tokens each, {in_flight} at a time, temperature "
        f"{plain.temperature:g}."
    ]
    return Table(columns=columns, rows=rows, notes=notes)


def _row(
    label: str,
    models: Mapping[str, LoadedModel],
    items: Sequence[PromptItem],
    request: Request,
    in_flight: int,
    shown: Shown,
) -> dict[str, Cell]:
    from anyorder.engine.engine import Engine
    from anyorder.evaluation.drafting import drafting

    engine = Engine(models["target"], draft=models.get("draft"))
    prompts = [item.prompt for item in items]
    found = drafting(engine, prompts, request, in_flight=in_flight, progress=shown)
    return {
        "model": label,
        "method": request.method,
        **vars(found),
        "tokens_per_second": found.num_new_tokens / found.seconds,
    }


def _drafter_of(request: Request) -> str:
    """What proposes tokens where no model for it was named."""
    method = build(lookup.find("methods", request.method, kind="method"), request.options)
    drafter = getattr(method, "drafter", None)
    return request.method if drafter is None else lookup.name_of(drafter)
