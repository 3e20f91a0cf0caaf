"""A training recipe: a TOML file, read into frozen dataclasses.

One section a dataclass, one field an option with its bounds and its description (`core.options`).
An unknown or misspelt section or field is refused with the nearest name. Nothing here imports
torch.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from anyorder.core import lookup
from anyorder.core.errors import InvalidRequest, UnknownName, UserError
from anyorder.core.objective import Objective
from anyorder.core.options import Part, Range, build, describe, validate
from anyorder.training.readers import Source

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """[model]: a checkpoint to go on from, or the sizes of a new LLaMA-style decoder."""

    init: Annotated[str | None, "name or folder of a model to fine-tune; then no sizes"] = None
    width: Annotated[int | None, Range(8), "of the residual stream"] = None
    layers: Annotated[int | None, Range(1, 1000), "attention and MLP layers"] = None
    heads: Annotated[int | None, Range(1), "query heads"] = None
    kv_heads: Annotated[int | None, Range(1), "key/value heads; none: as many as heads"] = None
    mlp_width: Annotated[int | None, Range(1), "of the MLP; none: 8/3 of width"] = None
    context: Annotated[int | None, Range(2), "longest sequence; none: [data] length"] = None
    tied_embeddings: Annotated[bool, "the embedding is the output layer too"] = True

    def __post_init__(self) -> None:
        validate(self)
        sizes = ("width", "layers", "heads", "kv_heads", "mlp_width", "context")
        given = [name for name in sizes if getattr(self, name) is not None]
        if self.init is not None:
            if given:
                raise InvalidRequest(
                    f"[model] has init and {given[0]}; a model to fine-tune brings its own sizes: "
                    "leave one of the two out."
                )
            return
        if missing := [name for name in ("width", "layers", "heads") if name not in given]:
            raise InvalidRequest(
                f"[model] lacks {missing[0]}; give width, layers and heads, or init to fine-tune."
            )
        assert self.width is not None and self.heads is not None, "just checked"
        if self.width % (2 * self.heads):
            near = 2 * self.heads * max(self.width // self.heads // 2, 1)
            raise InvalidRequest(
                f"[model] width must be an even multiple of heads, got {self.width} and "
                f"{self.heads}; try width = {near}."
            )
        if self.heads % (self.kv_heads or self.heads):
            raise InvalidRequest(
                f"[model] heads must be a multiple of kv_heads, got {self.heads} and "
                f"{self.kv_heads}."
            )


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """[data]: which texts, and how they become sequences of tokens."""

    sources: Annotated[
        tuple[Source, ...], "files, folders or patterns, from the recipe's folder; or tables"
    ]
    length: Annotated[int, Range(2), "tokens of a training sequence"]
    validation: Annotated[float, Range(0.0, 0.5), "share of the documents held out"] = 0.02
    tokenizer: Annotated[str | None, "folder or model whose tokenizer to use"] = None
    vocabulary: Annotated[
        int | None, Range(260, 1_000_000), "train a byte-level BPE tokenizer of this size instead"
    ] = None

    def __post_init__(self) -> None:
        validate(self)
        if self.tokenizer is not None and self.vocabulary is not None:
            raise InvalidRequest(
                "[data] has tokenizer and vocabulary; name a tokenizer to use or the size of one "
                "to train, not both."
            )


@dataclass(frozen=True, kw_only=True)
class OptimizerRecipe:
    """[optimizer]: how gradients become updates."""

    name: Annotated[Literal["adamw", "muon"], "muon: for hidden matrices; AdamW for the rest"] = (
        "adamw"
    )
    learning_rate: Annotated[float, Range(1e-12, 10.0), "the schedule's highest"]
    beta1: Annotated[float, Range(0.0, 0.99999), "memory of AdamW's mean gradient"] = 0.9
    beta2: Annotated[float, Range(0.0, 0.99999), "memory of AdamW's mean squared gradient"] = 0.95
    epsilon: Annotated[float, Range(1e-16, 1.0), "added to AdamW's denominator"] = 1e-8
    weight_decay: Annotated[float, Range(0.0, 10.0), "of matrices; never of norms and biases"] = 0.1
    momentum: Annotated[float, Range(0.0, 0.99999), "memory of Muon's gradient"] = 0.95

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, kw_only=True)
class ScheduleRecipe:
    """[schedule]: the learning rate over the steps."""

    name: Annotated[Literal["constant", "cosine", "wsd", "noam"], "shape after the warm-up"] = (
        "cosine"
    )
    warmup: Annotated[int, Range(0), "steps of linear rise from 0"] = 0
    final: Annotated[float, Range(0.0, 1.0), "cosine, wsd: where it ends, of the highest"] = 0.1
    decay: Annotated[float, Range(0.0, 1.0), "wsd: share of the steps in which it falls"] = 0.2

    def __post_init__(self) -> None:
        validate(self)
        if self.name == "noam" and not self.warmup:
            raise InvalidRequest("[schedule] noam needs warmup of at least 1 step, got 0.")


@dataclass(frozen=True, kw_only=True)
class RunRecipe:
    """[run]: how long, how much at a time, and what is kept."""

    steps: Annotated[int, Range(1), "optimiser steps"]
    batch_size: Annotated[int, Range(1), "sequences of a step"]
    accumulation: Annotated[int, Range(1), "passes a step's sequences are spread over"] = 1
    clip: Annotated[float | None, Range(1e-6), "largest norm of the gradient"] = 1.0
    dtype: Annotated[
        Literal["float32", "bfloat16"], "of the passes; weights are trained in float32"
    ] = "float32"
    device: Annotated[Literal["auto", "cpu", "cuda"], "auto: the first GPU, or else the CPU"] = (
        "auto"
    )
    seed: Annotated[int, Range(0, 2**62), "of weights, order of the data, and noise"] = 0
    checkpoint_every: Annotated[int, Range(1), "steps between checkpoints"] = 500
    validate_every: Annotated[int, Range(1), "steps between validations"] = 250
    validation_batches: Annotated[int, Range(1), "most batches of a validation"] = 8
    ema: Annotated[
        float | None, Range(0.0, 0.999999), "memory of a running mean of the weights, then used"
    ] = None
    divergence: Annotated[
        float, Range(0.0), "stop if the smoothed loss is so far above its lowest"
    ] = 2.0
    export: Annotated[Literal["end", "checkpoints"], "when a model folder is written"] = "end"
    output: Annotated[str | None, "folder; none: runs/ and the recipe's name"] = None

    def __post_init__(self) -> None:
        validate(self)
        if self.batch_size % self.accumulation:
            raise InvalidRequest(
                f"[run] batch_size must be a multiple of accumulation, got {self.batch_size} and "
                f"{self.accumulation}."
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole training run."""

    model: ModelRecipe
    data: DataRecipe
    objective: Annotated[Objective, Part("training/objectives"), "what is learnt"]
    optimizer: OptimizerRecipe
    schedule: ScheduleRecipe
    run: RunRecipe
    folder: Path = field(default=Path(), compare=False)
    """Where relative paths of [model] and [data] start."""

    def __post_init__(self) -> None:
        context = self.model.context
        if context is not None and self.data.length > context:
            raise InvalidRequest(
                f"[data] length is {self.data.length}, but the model's context is {context} "
                "tokens; lower length or raise [model] context."
            )
        own = self.data.tokenizer is not None or self.data.vocabulary is not None
        if self.model.init is None and not own:
            raise InvalidRequest(
                "[data] lacks a tokenizer; name a model whose tokenizer to use, or give "
                "vocabulary, the size of one to train."
            )
        if self.model.init is not None and self.data.vocabulary is not None:
            raise InvalidRequest(
                "[data] has vocabulary, but a model to fine-tune knows only its own tokenizer; "
                "leave vocabulary out."
            )

    def path(self, text: str) -> Path:
        """A path of the recipe."""
        return self.folder / Path(text).expanduser()

    def source(self, name: str) -> str:
        """A model that the recipe names: a folder seen from its own, or any other name."""
        path = self.path(name)
        return str(path) if path.exists() else name

    def fields(self) -> dict[str, dict[str, Any]]:
        """Every section's fields, for checkpoints (JSON) and for `build_recipe`."""
        sections: dict[str, dict[str, Any]] = {}
        for name in _SECTIONS:
            part = getattr(self, name)
            named = {"name": lookup.name_of(part)} if name == "objective" else {}
            sections[name] = {**named, **dataclasses.asdict(part)}
        stored: dict[str, dict[str, Any]] = json.loads(json.dumps(sections))
        return stored


_SECTIONS = ("model", "data", "objective", "optimizer", "schedule", "run")
_MAY_CHANGE = {
    "run": {"output", "checkpoint_every", "export", "divergence", "device"},
}
"""Fields without an effect on the weights."""


def read_recipe(path: Path) -> Recipe:
    """The recipe of a TOML file; UserError names the field that is wrong."""
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"the recipe {path} is not UTF-8 text.") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"the recipe {path} is not valid TOML: {error}.") from None
    recipe = build_recipe(sections, folder=path.parent)
    if recipe.run.output is None:
        run = dataclasses.replace(recipe.run, output=str(Path("runs") / path.stem))
        recipe = dataclasses.replace(recipe, run=run)
    return recipe


def build_recipe(sections: Mapping[str, object], *, folder: Path = Path()) -> Recipe:
    """The recipe with these sections, each a mapping of fields."""
    for name, fields in sections.items():
        if name not in _SECTIONS:
            raise UnknownName("recipe section", name, _SECTIONS)
        if not isinstance(fields, Mapping):
            raise InvalidRequest(f"[{name}] must be a section of fields, got {fields!r}.")
    objective = _table(sections, "objective")
    if "name" not in objective:
        known = ", ".join(lookup.names("training/objectives"))
        raise InvalidRequest(f"[objective] lacks name; it must be one of {known}.")
    (option,) = describe(Recipe)
    checked = option.check(objective)
    assert isinstance(checked, Objective), "a Part is an instance of its folder's class"
    return Recipe(
        model=_section(ModelRecipe, sections, "model"),
        data=_section(DataRecipe, sections, "data"),
        objective=checked,
        optimizer=_section(OptimizerRecipe, sections, "optimizer"),
        schedule=_section(ScheduleRecipe, sections, "schedule"),
        run=_section(RunRecipe, sections, "run"),
        folder=folder,
    )


def difference(ours: Mapping[str, Mapping[str, Any]], theirs: Mapping[str, Any]) -> str | None:
    """The first field, in words, that makes two recipes' weights differ; None if none does."""
    for section in _SECTIONS:
        other = theirs.get(section, {})
        for name in dict.fromkeys((*ours[section], *other)):
            if name in _MAY_CHANGE.get(section, ()):
                continue
            here, there = ours[section].get(name), other.get(name)
            if here != there:
                return f"[{section}] {name} is {here!r}, and was {there!r} in the checkpoint"
    return None


def _table(sections: Mapping[str, object], name: str) -> dict[str, Any]:
    fields = sections.get(name, {})
    assert isinstance(fields, Mapping), "sections were checked"
    return dict(fields)


_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".tsv": "pairs"}


def _sources(given: object) -> tuple[Source, ...]:
    """Each a path, whose ending says the format, or a table of a source's fields."""
    if not isinstance(given, list) or not given:
        raise InvalidRequest(
            '[data] sources must be a list of files or tables, such as ["a.txt"] or '
            f'[{{path = "b.jsonl", text = "body"}}], got {given!r}.'
        )
    sources = []
    for entry in given:
        fields = {"path": entry} if isinstance(entry, str) else entry
        if not isinstance(fields, Mapping):
            raise InvalidRequest(f"[data] sources holds {entry!r}; a path or a table is needed.")
        path = fields.get("path")
        kind = _FORMATS.get(Path(path).suffix, "text") if isinstance(path, str) else "text"
        sources.append(build(Source, {"format": kind, **fields}, kind="[data] source field"))
    return tuple(sources)


def _section(cls: type[T], sections: Mapping[str, object], name: str) -> T:
    fields = _table(sections, name)
    if name == "data" and "sources" in fields:
        fields["sources"] = _sources(fields["sources"])
    required = [option.name for option in describe(cls) if option.default is dataclasses.MISSING]
    kind = f"[{name}] field"
    known = [option.name for option in describe(cls)]
    for given in fields:
        if given not in known:
            raise UnknownName(kind, given, known)
    for needed in required:
        if needed not in fields:
            raise InvalidRequest(f"[{name}] lacks {needed}.")
    try:
        return build(cls, fields, kind=kind)
    except InvalidRequest as error:
        text = str(error)
        raise InvalidRequest(text if text.startswith("[") else f"[{name}] {text}") from None
