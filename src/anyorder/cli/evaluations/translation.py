"""BLEU and chrF on pairs, by any decoding method; a MODEL may also be a .txt file of translations,
one a line. Pairs whose source is too long for one of the models are left out for all of them."""

from __future__ import annotations

import argparse
from itertools import compress, islice
from pathlib import Path
from typing import TYPE_CHECKING

from anyorder.cli.evaluations.data import open_data
from anyorder.cli.evaluations.models import Shown, controls, name_of_model, open_shown
from anyorder.cli.files import read_text
from anyorder.cli.numbers import whole_number
from anyorder.core.errors import UserError

if TYPE_CHECKING:
    from anyorder.engine.engine import Engine
    from anyorder.evaluation.tables import Cell, Table
    from anyorder.evaluation.translation import Translations
    from anyorder.training.documents import Document

FLAGS = frozenset({"quantize", "part", "num", "bleu_words"})
TAKES_REQUEST = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this task alone."""
    add = parser.add_argument_group("translation").add_argument
    add("--bleu-words", metavar="NAME", help="sacreBLEU's way to cut words: 13a, zh, ... [13a]")


def measure(arguments: argparse.Namespace, shown: Shown) -> Table:
    """A row for each model or file of translations."""
    from anyorder.evaluation.generation import reads
    from anyorder.evaluation.tables import Column, Table
    from anyorder.evaluation.translation import score

    data = open_data(arguments.data, arguments.part)
    limit = None if arguments.num is None else whole_number("--num", arguments.num, 1)
    pairs = list(islice(data.documents(pairs=True), limit))
    if not pairs:
        raise UserError(f"{data.name} has no pairs.")
    engines = {
        model: open_shown(model, arguments, shown)
        for model in arguments.models
        if not model.endswith(".txt")
    }
    kept = [all(reads(engine, pair.prompt) for engine in engines.values()) for pair in pairs]
    pairs, num_pairs = list(compress(pairs, kept)), len(pairs)
    if not pairs:
        raise UserError(f"every pair of {data.name} is too long for the encoder of a model.")
    rows: list[dict[str, Cell]] = []
    signatures: list[str] = []
    for model in arguments.models:
        made = None
        if model not in engines:
            texts = tuple(read_text(Path(model)).splitlines())
            texts = tuple(compress(texts, kept)) if len(texts) == num_pairs else texts
        else:
            made = _translate(arguments, engines[model], pairs, data.sources[0].separator, shown)
            texts = made.texts
        found = score(texts, [pair.text for pair in pairs], tokenizer=arguments.bleu_words or "13a")
        signatures = [f"BLEU: {found.bleu_signature}", f"chrF: {found.chrf_signature}"]
        row: dict[str, Cell] = {"model": name_of_model(model), **vars(found)}
        if made is not None:
            row |= {
                "method": arguments.method or "autoregressive",
                "tokens_per_pass": made.tokens_per_pass,
                "tokens_per_second": made.num_tokens / made.seconds,
                "pairs_per_second": len(pairs) / made.seconds,
            }
        rows.append(row)
    columns = (
        Column(key="model", title="model"),
        Column(key="method", title="method"),
        Column(key="bleu", title="BLEU", ratio=True),
        Column(key="chrf", title="chrF"),
        Column(key="length_ratio", title="length", digits=3),
        Column(key="empty", title="empty", digits=3),
        Column(key="repeated", title="repeated", digits=3),
        Column(key="tokens_per_pass", title="tokens/pass"),
        Column(key="tokens_per_second", title="tokens/s", digits=0),
        Column(key="pairs_per_second", title="pairs/s"),
    )
    left_out = num_pairs - len(pairs)
    also = f"; {left_out:,} left out, too long for an encoder" if left_out else ""
    notes = [f"Data: {data.name}; {len(pairs):,} pairs{also}.", *signatures]
    return Table(columns=columns, rows=rows, notes=notes)


def _translate(
    arguments: argparse.Namespace,
    engine: Engine,
    pairs: list[Document],
    separator: str,
    shown: Shown,
) -> Translations:
    """By an encoder-decoder, or by a decoder that learnt pairs with a separator between."""
    from anyorder.evaluation.translation import translate

    request = controls(arguments, {})
    if engine.tokenizer is None:
        raise UserError(f"{engine.abilities.name} has no tokenizer, so it cannot translate text.")
    between = "" if engine.abilities.source_length else separator
    return translate(engine, [pair.prompt + between for pair in pairs], request, shown)
