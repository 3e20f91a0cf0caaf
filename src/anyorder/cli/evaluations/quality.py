"""Samples without references: diversity, repetition, length, and how a second model finds them.

A MODEL may also be a file of samples, one JSON object with `text` (and `prompt`) a line.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from anyorder.cli.evaluations.data import PromptItem, open_data, open_prompts
from anyorder.cli.evaluations.models import Shown, controls, load_shown, name_of_model, open_shown
from anyorder.cli.files import read_text
from anyorder.cli.numbers import whole_number
from anyorder.core.errors import InvalidRequest, UserError

if TYPE_CHECKING:
    from anyorder.engine.engine import Engine
    from anyorder.evaluation.quality import Sample
    from anyorder.evaluation.tables import Cell, Table
    from anyorder.model.tokenizer import Tokenizer

FLAGS = frozenset({"quantize", "part", "num", "judge", "mauve", "prompt_tokens", "copied_from"})
TAKES_REQUEST = True
_NUM = 200
_PROMPT_TOKENS = 16
_NEW_TOKENS = 64
REFERENCE = "(the text itself)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this task alone."""
    add = parser.add_argument_group("quality").add_argument
    add("--judge", metavar="MODEL", help="a second model, for generative perplexity")
    add(
        "--mauve",
        action="store_const",
        const=True,
        help="also how far samples are from the real texts, by the judge's hidden states",
    )
    add(
        "--copied-from",
        metavar="DATA",
        nargs="+",
        help="a recipe (its training part), corpora or files: which 8-grams stand there?",
    )
    add(
        "--prompt-tokens",
        metavar="N",
        help=f"tokens of a text without a prompt that are given [{_PROMPT_TOKENS}]",
    )


def measure(arguments: argparse.Namespace, shown: Shown) -> Table:
    """A row for each model or file of samples, and one for what the texts really say."""
    from anyorder.evaluation.quality import copied, judge, quality
    from anyorder.evaluation.tables import Column, Table

    source = None
    if arguments.copied_from is not None:
        source = open_data(arguments.copied_from, None, usual="train")
    num = whole_number("--num", arguments.num, _NUM)
    found: dict[str, list[Sample]] = {}
    for model in arguments.models:
        if model.endswith((".jsonl", ".ndjson")):
            found[model] = _read(Path(model), num)
        else:
            found |= _generate(arguments, model, num, shown)
    if REFERENCE in found:  # the first row, to compare with
        found = {REFERENCE: found.pop(REFERENCE), **found}
    if arguments.mauve and (arguments.judge is None or REFERENCE not in found):
        raise InvalidRequest(
            "--mauve needs --judge, and a model that goes on with texts, to compare with the rest "
            "of them."
        )
    engine: Engine | None = None
    if arguments.judge is not None:
        from anyorder.engine.engine import Engine

        engine = Engine(load_shown(arguments.judge, shown))
    rows: list[dict[str, Cell]] = []
    for name, samples in found.items():
        values = quality(samples)
        row: dict[str, Cell] = {"model": name, **vars(values)}
        if source is not None:
            texts = (document.plain_text for document in source.documents())
            row["copied"] = copied((sample.text for sample in samples), texts)
        if engine is not None:
            judgement = judge(engine, samples, shown)
            row["perplexity"] = None if judgement is None else judgement.perplexity
        rows.append(row)
    if arguments.mauve and engine is not None:
        for row, value in zip(rows, _mauve(engine, list(found.values()), shown), strict=True):
            row["mauve"] = value
    notes = ["Words and entropy are means over samples; self-BLEU is over at most 200 of them."]
    if arguments.judge is not None:
        notes.append(
            f"Generative perplexity is under {name_of_model(arguments.judge)}, and says little by "
            "itself: repetition lowers it. Read it with entropy and rep-4, and compare it under "
            "the same judge only."
        )
    if arguments.mauve:
        notes.append(
            "MAUVE compares with the real texts; their own is that of one half with the other, and "
            "about the best that can be reached."
        )
    columns = (
        Column(key="model", title="samples of"),
        Column(key="num_samples", title="samples"),
        Column(key="num_words", title="words", digits=1),
        Column(key="perplexity", title="gen. perplexity"),
        Column(key="mauve", title="MAUVE", digits=3),
        Column(key="entropy", title="entropy"),
        Column(key="rep_4", title="rep-4", digits=3),
        Column(key="compression", title="zlib"),
        Column(key="copied", title="copied", digits=3),
        Column(key="distinct_1", title="distinct-1", digits=3),
        Column(key="distinct_2", title="distinct-2", digits=3),
        Column(key="self_bleu", title="self-BLEU", digits=1),
    )
    return Table(columns=columns, rows=rows, notes=notes)


def _mauve(engine: Engine, sides: list[list[Sample]], shown: Shown) -> list[float]:
    """Of each side with the first, the real texts; of these themselves, of their halves."""
    from anyorder.evaluation.mauve import mauve, vectors

    found = [vectors(engine, [sample.text for sample in side], shown) for side in sides]
    real = found[0]
    return [mauve(real[::2], real[1::2]), *(mauve(real, other) for other in found[1:])]


def _read(path: Path, num: int) -> list[Sample]:
    from anyorder.evaluation.quality import Sample

    samples = []
    for number, line in enumerate(read_text(path).splitlines()[:num], 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        fields = row if isinstance(row, dict) else {}
        text, prompt = fields.get("text"), fields.get("prompt", "")
        if not isinstance(text, str) or not isinstance(prompt, str):
            raise UserError(f"{path} line {number} is not an object with a text called 'text'.")
        samples.append(Sample(text=text, prompt=prompt))
    if not samples:
        raise UserError(f"{path} has no samples.")
    return samples


def _generate(
    arguments: argparse.Namespace, model: str, num: int, shown: Shown
) -> dict[str, list[Sample]]:
    """The model's samples, and what the texts say where every prompt has a text behind it."""
    from anyorder.evaluation.generation import answers
    from anyorder.evaluation.quality import Sample

    request = controls(arguments, {"max_new_tokens": _NEW_TOKENS, "temperature": 1.0})
    engine = open_shown(model, arguments, shown)
    tokenizer = engine.tokenizer
    if tokenizer is None:
        raise UserError(f"{model} has no tokenizer, so its samples are no text.")
    num_prompt_tokens = whole_number("--prompt-tokens", arguments.prompt_tokens, _PROMPT_TOKENS)
    items = open_prompts(
        arguments.data, arguments.part, tokenizer, num=num, num_prompt_tokens=num_prompt_tokens
    )
    requests = (
        replace(request, prompt=item.prompt, seed=request.seed + index)
        for index, item in enumerate(items)
    )
    samples = []
    for item, answer in zip(items, answers(engine, requests), strict=True):
        samples.append(Sample(text=answer.completion.text, prompt=item.text))
        shown("sampling", len(samples), len(items))
    found = {name_of_model(model): samples}
    assert request.max_new_tokens is not None, "it has a default"
    real = _real(items, tokenizer, request.max_new_tokens)
    return found | ({REFERENCE: real} if real else {})


def _real(items: list[PromptItem], tokenizer: Tokenizer, num_tokens: int) -> list[Sample]:
    """What really follows, as long as the samples may be; none if it is not known of all."""
    from anyorder.evaluation.quality import Sample

    samples = []
    for item in items:
        if item.reference is None:
            return []
        tokens = tokenizer.encode(item.reference, add_special=False, parse_special=False)
        text = tokenizer.decode(tokens[:num_tokens])
        samples.append(Sample(text=text, prompt=item.text))
    return samples
