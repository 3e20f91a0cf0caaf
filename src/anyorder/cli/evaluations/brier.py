"""BrierLM: how well draws predict, one scale for all ways of decoding.

At places spread over the documents, two texts of four tokens are drawn and compared with what
follows. Models of different tokenizers do not compare.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from anyorder.cli.evaluations.data import Data, open_data
from anyorder.cli.evaluations.models import Shown, controls, name_of_model, open_shown
from anyorder.cli.numbers import whole_number
from anyorder.core.errors import InvalidRequest, UserError

if TYPE_CHECKING:
    from anyorder.engine.engine import Engine
    from anyorder.evaluation.tables import Cell, Table

FLAGS = frozenset({"quantize", "part", "num", "prompt_tokens"})
TAKES_REQUEST = True
_ORDER = 4
_NUM = 1000
_PROMPT_TOKENS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own: --num places, each behind --prompt-tokens."""


def measure(arguments: argparse.Namespace, shown: Shown) -> Table:
    """A row for each model."""
    from anyorder.evaluation.tables import Column, Table

    data = open_data(arguments.data, arguments.part)
    if arguments.max_new_tokens is not None:
        raise InvalidRequest(f"brier draws {_ORDER} tokens; leave --max-new-tokens out.")
    rows = [_row(arguments, data, model, shown) for model in arguments.models]
    columns = (
        Column(key="model", title="model"),
        Column(key="method", title="method"),
        Column(key="num_places", title="places"),
        Column(key="brier_lm", title="BrierLM", ratio=True),
        *(Column(key=f"brier_{n}", title=f"Brier-{n}", digits=4) for n in range(1, _ORDER + 1)),
        Column(key="error_1", title="± (1)", digits=4),
    )
    return Table(columns=columns, rows=rows, notes=[f"Data: {data.name}."])


def _row(arguments: argparse.Namespace, data: Data, model: str, shown: Shown) -> dict[str, Cell]:
    from anyorder.evaluation.brier import brier
    from anyorder.evaluation.generation import answers

    request = controls(
        arguments, {"max_new_tokens": _ORDER, "temperature": 1.0, "ignore_end": True}
    )
    engine = open_shown(model, arguments, shown)
    num = whole_number("--num", arguments.num, _NUM, least=2)
    num_prompt_tokens = whole_number("--prompt-tokens", arguments.prompt_tokens, _PROMPT_TOKENS)
    places = list(islice(_places(data, engine, num_prompt_tokens), num))
    requests = (
        replace(request, prompt=prompt, seed=request.seed + 2 * index + draw)
        for index, (prompt, _) in enumerate(places)
        for draw in (0, 1)
    )
    drawn: list[list[int]] = []
    for answer in answers(engine, requests):
        tokens = answer.completion.tokens
        # A text that ended early has nothing behind its end: no token is -1, and both draws agree.
        drawn.append(tokens + [-1] * (_ORDER - len(tokens)))
        shown("drawing", len(drawn), 2 * len(places))
    found = brier(drawn[::2], drawn[1::2], [true for _, true in places])
    return {
        "model": name_of_model(model),
        "method": request.method,
        "num_places": found.num_places,
        "brier_lm": found.brier_lm,
        **{f"brier_{n}": score for n, score in enumerate(found.scores, 1)},
        **{f"error_{n}": error for n, error in enumerate(found.standard_errors, 1)},
    }


def _places(
    data: Data, engine: Engine, num_prompt_tokens: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Prompts and what follows each, one behind the other through every document."""
    from anyorder.training.documents import Encoder

    if engine.tokenizer is None:
        raise UserError(f"{engine.abilities.name} has no tokenizer, so no text can be measured.")
    encoder = Encoder.of(engine.tokenizer)
    step = num_prompt_tokens + _ORDER
    for document in data.documents():
        tokens, targets = encoder.encode(document)
        for start in range(0, len(tokens) - step + 1, step):
            middle = start + num_prompt_tokens
            if all(targets[middle : middle + _ORDER]):
                yield tokens[start:middle], tokens[middle : middle + _ORDER]
