"""What early exit costs and saves: accuracy and FLOPs of a classifier over thresholds of doubt."""

from __future__ import annotations

import argparse
from itertools import islice
from typing import TYPE_CHECKING

from anyorder.cli.evaluations.data import Data, open_data
from anyorder.cli.evaluations.models import Shown, name_of_model
from anyorder.cli.numbers import whole_number
from anyorder.core.errors import InvalidRequest, UserError

if TYPE_CHECKING:
    from anyorder.evaluation.early_exit import Example
    from anyorder.evaluation.tables import Cell, Table
    from anyorder.model.tokenizer import Tokenizer

FLAGS = frozenset({"part", "num", "thresholds"})
TAKES_REQUEST = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this task alone."""
    add = parser.add_argument_group("classification").add_argument
    add(
        "--thresholds",
        metavar="X",
        nargs="+",
        help="uncertainties, 0 to 1, below which a text leaves early [0.1 to 0.9]",
    )


def measure(arguments: argparse.Namespace, shown: Shown) -> Table:
    """A row for each model and threshold; 0 runs all layers."""
    from anyorder.evaluation.early_exit import curve
    from anyorder.evaluation.tables import Column, Table
    from anyorder.model import catalog
    from anyorder.model.classifier import load_classifier
    from anyorder.model.tokenizer import Tokenizer

    thresholds = _thresholds(arguments.thresholds)
    data = open_data(arguments.data, arguments.part)
    limit = None if arguments.num is None else whole_number("--num", arguments.num, 1)
    rows: list[dict[str, Cell]] = []
    num_examples = 0
    for number, model in enumerate(arguments.models):
        folder = catalog.resolve(model).path
        classifier = load_classifier(folder)
        examples = _examples(data, Tokenizer.from_folder(folder), limit)
        num_examples = len(examples)
        # A classifier without exits runs all layers whatever the threshold.
        chosen = thresholds if len(classifier.branches) > 1 else []
        for point in curve(classifier, examples, chosen):
            rows.append({"model": name_of_model(model), **vars(point)})
        shown("classifying", number + 1, len(arguments.models))
    columns = (
        Column(key="model", title="model"),
        Column(key="threshold", title="threshold"),
        Column(key="accuracy", title="accuracy", digits=4, ratio=True),
        Column(key="mean_layers", title="layers"),
        Column(key="flops", title="FLOPs", digits=0),
        Column(key="speedup", title="fewer FLOPs"),
    )
    notes = [f"Data: {data.name}; {num_examples:,} texts. FLOPs are per text; ratios to row 1."]
    return Table(columns=columns, rows=rows, notes=notes)


def _thresholds(given: list[str] | None) -> list[float]:
    if given is None:
        return [tenth / 10 for tenth in range(1, 10)]
    found = []
    for text in given:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 < value <= 1:
            raise InvalidRequest(f"--thresholds are numbers above 0 and up to 1, got {text!r}.")
        found.append(value)
    return found


def _examples(data: Data, tokenizer: Tokenizer, limit: int | None) -> list[Example]:
    """Texts are the documents' prompts, labels what follows them."""
    from anyorder.evaluation.early_exit import Example
    from anyorder.training.documents import Encoder

    encoder = Encoder.of(tokenizer)
    examples = []
    for document in islice(data.documents(), limit):
        tokens, targets = encoder.encode(document)
        text = tokens[: targets.index(True)]
        if not text:
            raise UserError(
                f"{data.name} has texts without a label; give rows of a prompt (the text) and a "
                "text (its label)."
            )
        examples.append(Example(tokens=tuple(text), label=document.text.strip()))
    return examples
