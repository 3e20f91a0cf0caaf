"""Opens what a recipe's [data] names: the tokenizer, found or trained, and the packed sequences."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

from anyorder.core.errors import UserError
from anyorder.model import catalog
from anyorder.model.gguf import GGUFFile
from anyorder.model.safetensors_folder import read_json
from anyorder.model.saving import copy_tokenizer, whole_folder
from anyorder.model.tokenizer import Tokenizer
from anyorder.training.config import Recipe
from anyorder.training.data import PackedDataset, prepare
from anyorder.training.documents import Part
from anyorder.training.pairs import PairDataset, prepare_pairs
from anyorder.training.readers import Source, read
from anyorder.training.setup import TrainingData
from anyorder.training.token_store import Progress
from anyorder.training.tokenizers import (
    add_control_tokens,
    train_tokenizer,
    unpack_tokenizer,
)


def open_data(
    recipe: Recipe, output: Path, *, resumed: bool, progress: Progress | None = None
) -> TrainingData:
    """The recipe's data. A tokenizer that is trained, or taken out of a GGUF file, is kept in
    `output` for when the run is resumed, and so are the tokens."""
    sources = [
        source
        if source.path is None
        else dataclasses.replace(source, path=str(recipe.path(source.path)))
        for source in recipe.data.sources
    ]
    folder = _tokenizer(recipe, sources, output / "tokenizer", resumed=resumed)
    tokenizer = Tokenizer.from_folder(folder)

    data, seed = recipe.data, recipe.run.seed

    def part(name: Part) -> PackedDataset | PairDataset:
        if not recipe.objective.needs_sources:
            return prepare(
                sources,
                tokenizer,
                output / "data",
                length=data.length,
                seed=seed,
                validation=data.validation,
                test=data.test,
                part=name,
                progress=progress,
            )
        return prepare_pairs(
            sources,
            tokenizer,
            output / "data",
            length=data.length,
            source_length=data.source_length or data.length,
            start=_start_token(recipe),
            seed=seed,
            validation=data.validation,
            test=data.test,
            part=name,
            progress=progress,
        )

    prints = "".join(source.fingerprint() for source in sources)
    train = part("train")
    return TrainingData(
        train=train,
        validation=part("validation") if data.validation else None,
        tokenizer_folder=folder,
        fingerprint=hashlib.sha256(prints.encode()).hexdigest(),
        left_out=tuple(
            f"{source.name}: {source.num_skipped} left out, the first: {source.problems[0]}"
            for source in train.statistics.sources
            if source.num_skipped
        ),
    )


def _start_token(recipe: Recipe) -> int | None:
    """Where texts of the model to fine-tune begin; None for a new one."""
    if recipe.model.source is None:
        return None
    folder = catalog.resolve(recipe.source(recipe.model.source)).path
    start = read_json(folder / "config.json").get("decoder_start_token_id")
    return start if isinstance(start, int) else None


def _tokenizer(recipe: Recipe, sources: list[Source], trained: Path, *, resumed: bool) -> Path:
    size = recipe.data.vocabulary
    if size is None:
        named = recipe.tokenizer
        assert named is not None, "a recipe has a tokenizer"
        found = catalog.resolve(recipe.source(named))
        adds = recipe.data.add_tokens
        if found.kind == "folder" and not adds:
            return found.path
        if not (resumed and trained.exists()):
            with whole_folder(trained) as partial:
                if found.kind == "folder":
                    copy_tokenizer(found.path, partial)
                else:
                    unpack_tokenizer(GGUFFile(found.path).metadata, partial)
                if adds:
                    objective = recipe.objective
                    add_control_tokens(
                        partial, objective.control_tokens, mask=objective.needs_mask_token
                    )
        return trained
    if not (resumed and trained.exists()):
        texts = _texts(sources)
        with whole_folder(trained) as partial:
            further = recipe.objective.control_tokens
            train_tokenizer(texts, partial, size=size, further=further)
    return trained


def _texts(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        for document in read(source, _ignore):
            if document.messages:
                raise UserError(
                    f"a tokenizer trained here has no chat template, which {source.name} needs; "
                    "name a model whose tokenizer to use."
                )
            yield document.prompt
            yield document.plain_text


def _ignore(message: str) -> None:
    """Lines that are skipped are reported when the documents are tokenised."""
