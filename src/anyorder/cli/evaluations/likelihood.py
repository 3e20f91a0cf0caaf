"""Perplexity per token and per word, bits per byte; exact, or a bound with its standard error."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

from anyorder.cli.evaluations.data import Data, held_out_pairs, held_out_texts, open_data
from anyorder.cli.evaluations.models import (
    Shown,
    as_trainee,
    controls,
    load_shown,
    name_of_model,
    tokenizer_of,
)
from anyorder.cli.numbers import whole_number
from anyorder.cli.terminal import note
from anyorder.core import lookup
from anyorder.core.errors import InvalidRequest

if TYPE_CHECKING:
    from anyorder.core.method import Abilities
    from anyorder.core.objective import Objective, TrainingBatch
    from anyorder.evaluation.likelihood import Likelihood
    from anyorder.evaluation.tables import Cell, Table
    from anyorder.evaluation.windows import Sizes
    from anyorder.model.loaded import LoadedModel

FLAGS = frozenset(
    {"quantize", "part", "num", "seed", "objective", "block_size", "num_draws", "length", "rows"}
    | {"cache_dtype"}
)
TAKES_REQUEST = False
_LONGEST = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this task alone."""
    add = parser.add_argument_group("likelihood").add_argument
    add(
        "--objective",
        metavar="NAME",
        nargs="+",
        help="what the model was trained for, or each of them [what its checkpoint says]",
    )
    add("--block-size", metavar="N", help="of block_diffusion, with --objective [the model's]")
    add("--num-draws", metavar="N", help="draws of noise for a bound [16]")
    add("--length", metavar="N", help="tokens of a window [the recipe's, or at most 1024]")
    add("--rows", metavar="N", help="windows of a pass [16]")
    add(
        "--cache-dtype",
        metavar="TYPE",
        help="int8: also with keys and values read back from a cache of 8 bits, a row more",
    )


def measure(arguments: argparse.Namespace, shown: Shown) -> Table:
    """A row for each model, and one more with another cache."""
    data = open_data(arguments.data, arguments.part)
    names = _objectives(arguments)
    num_draws = whole_number("--num-draws", arguments.num_draws, 16, least=2)
    rows: list[dict[str, Cell]] = []
    for model, name in zip(arguments.models, names, strict=True):
        rows += _rows(arguments, data, model, name, num_draws, shown)
    same = len({row["tokens"] for row in rows}) == 1
    notes = [f"Data: {data.name}; {rows[0]['bytes']:,} bytes of text to predict."]
    if any(row["error"] is not None for row in rows):
        notes.append(
            f"Bounds are from above; ± is the standard error over {num_draws} draws of noise."
        )
    if not same:
        notes.append("The models cut text into different tokens: compare words and bytes.")
    from anyorder.evaluation.tables import Column, Table

    columns = (
        Column(key="model", title="model"),
        Column(key="likelihood", title="likelihood"),
        Column(key="tokens", title="tokens"),
        Column(key="perplexity", title="perplexity", ratio=same),
        Column(key="error", title="±"),
        Column(key="word_perplexity", title="per word", digits=1),
        Column(key="bits_per_byte", title="bits/byte", digits=3, ratio=True),
    )
    return Table(columns=columns, rows=rows, notes=notes)


def _objectives(arguments: argparse.Namespace) -> Seq[str | None]:
    """A name for each model; None: what the checkpoint says."""
    names, num_models = arguments.objective or [], len(arguments.models)
    if arguments.block_size is not None and "block_diffusion" not in names:
        raise InvalidRequest("--block-size goes with --objective block_diffusion.")
    if len(names) not in (0, 1, num_models):
        raise InvalidRequest(
            f"--objective takes one name, or one for each of the {num_models} models, got "
            f"{len(names)}."
        )
    for name in names:
        lookup.find("training/objectives", name, kind="objective")
    return names if len(names) == num_models else (names or [None]) * num_models


def _objective(name: str | None, block_size: str | None, abilities: Abilities) -> Objective:
    from anyorder.evaluation.likelihood import in_blocks, trained_with

    if name is None:
        return trained_with(abilities)
    if name == "block_diffusion":
        size = None if block_size is None else whole_number("--block-size", block_size, 1)
        return in_blocks(abilities, size)
    objective: Objective = lookup.find("training/objectives", name, kind="objective")()
    return objective


def _rows(
    arguments: argparse.Namespace,
    data: Data,
    model: str,
    objective_name: str | None,
    num_draws: int,
    shown: Shown,
) -> Iterator[dict[str, Cell]]:
    from anyorder.evaluation.likelihood import likelihood

    loaded = load_shown(model, shown, dtype=arguments.dtype, quantize=arguments.quantize)
    objective = _objective(objective_name, arguments.block_size, loaded.abilities)
    batches, size = _batches(arguments, data, loaded)
    for cache_dtype in dict.fromkeys((None, arguments.cache_dtype)):
        found = likelihood(
            as_trainee(loaded, cache_dtype=cache_dtype),
            batches,
            objective,
            num_draws=num_draws,
            seed=controls(arguments, {}).seed,
            progress=shown,
        )
        name = name_of_model(model)
        if cache_dtype is not None:
            name += f" ({cache_dtype} cache)"
        yield _values(name, lookup.name_of(objective), found, size)


def _batches(
    arguments: argparse.Namespace, data: Data, loaded: LoadedModel
) -> tuple[list[TrainingBatch], Sizes]:
    """What the model is asked, and how much text it is."""
    from anyorder.evaluation.windows import pair_batches, sizes, windows

    limit = None if arguments.num is None else whole_number("--num", arguments.num, 1)
    rows = whole_number("--rows", arguments.rows, 16)
    abilities, tokenizer = loaded.abilities, tokenizer_of(loaded)
    context = abilities.context_length
    longest = min(context, _LONGEST if data.recipe is None else data.recipe.data.length)
    length = whole_number("--length", arguments.length, longest, least=2)
    if length > context:
        raise InvalidRequest(
            f"--length is {length}, but the context of {abilities.name} is {context} tokens."
        )
    device = loaded.network.device
    if not abilities.source_length:
        texts = held_out_texts(data, tokenizer, limit)
        return windows(texts, length=length, batch_size=rows, device=device), sizes(texts)
    if arguments.length is not None:
        raise InvalidRequest("pairs are measured whole; leave --length out.")
    start = next(iter(abilities.text_rules.start_tokens), None)
    pairs = held_out_pairs(data, tokenizer, start, limit)
    fit = [
        pair
        for pair in pairs
        if len(pair.source) <= abilities.source_length and len(pair.target.tokens) <= context
    ]
    if len(fit) < len(pairs):
        note(
            f"{len(pairs) - len(fit)} of {len(pairs)} pairs are longer than {abilities.name} reads"
        )
    targets = [pair.target for pair in fit]
    return pair_batches(fit, batch_size=rows, device=device), sizes(targets)


def _values(model: str, objective: str, found: Likelihood, size: Sizes) -> dict[str, Cell]:
    return {
        "model": model,
        "objective": objective,
        "likelihood": "exact" if found.exact else f"bound ({objective})",
        "tokens": found.num_tokens,
        "bytes": size.num_bytes,
        "nats": found.nats,
        "perplexity": found.perplexity,
        "error": None if found.exact else found.perplexity_error,
        "word_perplexity": math.exp(found.nats_per(size.num_words)),
        "bits_per_byte": found.nats_per(size.num_bytes) / math.log(2),
    }
