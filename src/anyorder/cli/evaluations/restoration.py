"""How much of a text an autoencoder of patches gives back from its vectors."""

from __future__ import annotations

import argparse
from itertools import islice
from typing import TYPE_CHECKING

from anyorder.cli.evaluations.data import open_data
from anyorder.cli.evaluations.models import Shown, name_of_model
from anyorder.cli.numbers import whole_number

if TYPE_CHECKING:
    from anyorder.evaluation.tables import Cell, Table

FLAGS = frozenset({"part", "num"})
TAKES_REQUEST = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def measure(arguments: argparse.Namespace, shown: Shown) -> Table:
    """A row for each autoencoder."""
    from anyorder.evaluation.restoration import restoration
    from anyorder.evaluation.tables import Column, Table
    from anyorder.model import catalog
    from anyorder.model.calm_autoencoder import load_autoencoder
    from anyorder.model.tokenizer import Tokenizer
    from anyorder.training.documents import Encoder

    data = open_data(arguments.data, arguments.part)
    limit = None if arguments.num is None else whole_number("--num", arguments.num, 1)
    rows: list[dict[str, Cell]] = []
    for model in arguments.models:
        folder = catalog.resolve(model).path
        coder = load_autoencoder(folder)
        encoder = Encoder.of(Tokenizer.from_folder(folder))
        texts = [encoder.encode(document)[0] for document in islice(data.documents(), limit)]
        found = restoration(coder, texts, progress=shown)
        rows.append({"model": name_of_model(model), **vars(found)})
    columns = (
        Column(key="model", title="model"),
        Column(key="num_tokens", title="tokens"),
        Column(key="from_means", title="restored from means", digits=4, ratio=True),
        Column(key="from_draws", title="from draws", digits=4),
        Column(key="whole_patches", title="whole patches", digits=4),
        Column(key="nats", title="nats/patch", digits=1),
    )
    return Table(columns=columns, rows=rows, notes=[f"Data: {data.name}. Nothing was hidden."])
