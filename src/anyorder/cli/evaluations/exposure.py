"""Exposure bias: errors on a model's own text beside errors on real text, against an oracle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from anyorder.cli.evaluations.data import held_out_texts, open_data
from anyorder.cli.evaluations.models import (
    Shown,
    as_trainee,
    controls,
    load_shown,
    name_of_model,
    tokenizer_of,
)
from anyorder.cli.files import write_text
from anyorder.cli.numbers import whole_number
from anyorder.core.errors import InvalidRequest

if TYPE_CHECKING:
    from anyorder.evaluation.tables import Cell, Table

FLAGS = frozenset(
    {"quantize", "part", "num", "seed", "temperature", "prompt_tokens", "oracle", "steps", "plot"}
)
TAKES_REQUEST = False
_STEPS = 64
_PROMPT_TOKENS = 16
_ROWS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this task alone."""
    add = parser.add_argument_group("exposure").add_argument
    add("--oracle", metavar="MODEL", help="a better model with the same tokenizer")
    add("--steps", metavar="N", help=f"tokens written behind each prompt [{_STEPS}]")
    add("--plot", metavar="FILE.svg", help="draw one model's errors by step")


def measure(arguments: argparse.Namespace, shown: Shown) -> Table:
    """A row for each model."""
    from anyorder.evaluation.exposure import measure_exposure
    from anyorder.evaluation.exposure_picture import exposure_svg
    from anyorder.evaluation.tables import Column, Table
    from anyorder.evaluation.windows import windows

    if arguments.oracle is None:
        raise InvalidRequest("exposure needs --oracle, a better model with the same tokenizer.")
    plot = None if arguments.plot is None else Path(arguments.plot)
    if plot is not None and (plot.suffix != ".svg" or len(arguments.models) > 1):
        raise InvalidRequest("--plot takes a file ending in .svg, and draws a single model.")
    request = controls(arguments, {"temperature": 1.0})
    data = open_data(arguments.data, arguments.part)
    limit = None if arguments.num is None else whole_number("--num", arguments.num, 1)
    prompt_length = whole_number("--prompt-tokens", arguments.prompt_tokens, _PROMPT_TOKENS)
    steps = whole_number("--steps", arguments.steps, _STEPS)
    oracle = load_shown(arguments.oracle, shown, dtype=arguments.dtype)
    rows: list[dict[str, Cell]] = []
    for model in arguments.models:
        loaded = load_shown(model, shown, dtype=arguments.dtype, quantize=arguments.quantize)
        batches = windows(
            held_out_texts(data, tokenizer_of(loaded), limit),
            length=prompt_length + steps,
            batch_size=_ROWS,
            device=loaded.network.device,
        )
        found = measure_exposure(
            as_trainee(loaded),
            as_trainee(oracle),
            batches,
            prompt_length=prompt_length,
            length=steps,
            temperature=request.temperature,
            seed=request.seed,
        )
        rows.append(
            {
                "model": name_of_model(model),
                "num_texts": found.num_texts,
                "gold_error": sum(found.gold_error) / steps,
                "own_error": sum(found.own_error) / steps,
                "excess": found.excess[-1],
                "error": found.excess_standard_error[-1],
                "ratio": found.ratio[-1],
            }
        )
        if plot is not None:
            write_text(plot, exposure_svg(name_of_model(model), found))
    columns = (
        Column(key="model", title="model"),
        Column(key="num_texts", title="texts"),
        Column(key="gold_error", title="error on gold", digits=3),
        Column(key="own_error", title="error on own", digits=3),
        Column(key="excess", title="excess %", digits=1),
        Column(key="error", title="±", digits=1),
        Column(key="ratio", title="EB-C, last step", digits=3),
    )
    notes = [
        f"Data: {data.name}; oracle: {name_of_model(arguments.oracle)}; {steps} steps at "
        f"temperature {request.temperature:g} behind {prompt_length} tokens; errors: nats a step."
    ]
    return Table(columns=columns, rows=rows, notes=notes)
