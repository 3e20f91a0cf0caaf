"""A training recipe: a TOML file, read into frozen dataclasses.

One section a dataclass, one field an option with its bounds and its description (`core.options`).
[model] is a file in `networks/` and [objective] one in `objectives/`, found by name. An unknown or
misspelt section or field is refused with the nearest name. Nothing here imports torch, but the
files that are found by name do.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from anyorder.core import lookup
from anyorder.core.errors import InvalidRequest, UnknownName, UserError
from anyorder.core.objective import Objective
from anyorder.core.options import Part, build, describe
from anyorder.training.network import NetworkRecipe
from anyorder.training.readers import Source
from anyorder.training.sections import (
    AdapterRecipe,
    DataRecipe,
    OptimizerRecipe,
    RunRecipe,
    ScheduleRecipe,
    TeacherRecipe,
)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole training run."""

    model: NetworkRecipe
    data: DataRecipe
    objective: Annotated[Objective, Part("training/objectives"), "what is learnt"]
    optimizer: OptimizerRecipe
    schedule: ScheduleRecipe
    run: RunRecipe
    teacher: TeacherRecipe | None = None
    adapter: AdapterRecipe | None = None
    folder: Path = field(default=Path(), compare=False)
    """Where relative paths of [model] and [data] start."""

    def __post_init__(self) -> None:
        longest = self.model.longest
        if longest is not None and self.data.length > longest:
            raise InvalidRequest(
                f"[data] length is {self.data.length}, but the model's context is {longest} "
                "tokens; lower length or raise [model] context."
            )
        if self.data.source_length is not None and not self.objective.needs_sources:
            raise InvalidRequest(
                f"[data] has source_length, but {lookup.name_of(self.objective)} does not learn "
                "from pairs; leave it out."
            )
        for part in (self.model, self.objective):
            if part.needs_teacher and self.teacher is None:
                raise InvalidRequest(
                    f"{lookup.name_of(part)} needs a teacher; add [teacher] with init, the name or "
                    "folder of a model."
                )
        if self.adapter is not None and not (self.model.adaptable and self.model.source):
            raise InvalidRequest(
                "[adapter] needs a model to fine-tune: give a [model] of kind decoder init, the "
                "name or folder of one, or leave [adapter] out."
            )
        if self.run.tensor_parallel > 1 and self.optimizer.name == "muon":
            raise InvalidRequest(
                "[run] tensor_parallel splits the matrices that muon needs whole; use adamw, or "
                "leave tensor_parallel out."
            )
        if self.data.vocabulary is not None and self.origin is not None:
            raise InvalidRequest(
                f"[data] has vocabulary, but {self.origin} knows only its own tokenizer; leave "
                "vocabulary out."
            )
        if self.data.vocabulary is None and self.tokenizer is None:
            raise InvalidRequest(
                "[data] lacks a tokenizer; name a model whose tokenizer to use, or give "
                "vocabulary, the size of one to train."
            )

    @property
    def origin(self) -> str | None:
        """The model that brings a vocabulary along: the one to fine-tune, or the teacher."""
        return self.model.source or (None if self.teacher is None else self.teacher.init)

    @property
    def tokenizer(self) -> str | None:
        """The folder or model whose tokenizer is used; None: one is trained."""
        return self.data.tokenizer or self.origin

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
            if part is not None:
                key = _FOUND.get(name)
                named = {} if key is None else {key: lookup.name_of(part)}
                sections[name] = {**named, **_plain(part)}
        stored: dict[str, dict[str, Any]] = json.loads(json.dumps(sections))
        return stored


_SECTIONS = ("model", "teacher", "adapter", "data", "objective", "optimizer", "schedule", "run")
_FOUND = {"model": "kind", "objective": "name"}
"""Sections that are found by name, and the field that holds it."""
_MAY_CHANGE = {
    "run": {
        *("output", "checkpoint_every", "export", "divergence", "device"),
        *("checkpoint_layers", "tensor_parallel"),
    },
}
"""Fields without an effect on the weights."""


def read_recipe(path: Path) -> Recipe:
    """The recipe of a TOML file; UserError names the field that is wrong.

    With `extends = "OTHER.toml"` above its sections it has the fields of another recipe, but for
    those that it gives itself; a section that names another objective or kind of network starts
    anew. Paths are seen from the folder of the recipe that is read.
    """
    recipe = build_recipe(_read_sections(path, ()), folder=path.parent)
    if recipe.run.output is None:
        run = dataclasses.replace(recipe.run, output=str(Path("runs") / path.stem))
        recipe = dataclasses.replace(recipe, run=run)
    return recipe


def _read_sections(path: Path, extended_by: tuple[Path, ...]) -> dict[str, object]:
    try:
        sections: dict[str, object] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"the recipe {path} is not UTF-8 text.") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"the recipe {path} is not valid TOML: {error}.") from None
    base = sections.pop("extends", None)
    if base is None:
        return sections
    if not isinstance(base, str):
        raise InvalidRequest(f"{path}: extends must be the path of a recipe, got {base!r}.")
    if path.resolve() in extended_by:
        raise UserError(f"the recipe {path} extends itself.")
    merged = _read_sections(path.parent / base, (*extended_by, path.resolve()))
    for name, fields in sections.items():
        below = merged.get(name, {})
        if isinstance(below, Mapping) and isinstance(fields, Mapping):
            key = _FOUND.get(name)
            # Another objective or kind of network has other fields.
            if key is None or fields.get(key, below.get(key)) == below.get(key):
                fields = {**below, **fields}
        merged[name] = fields
    return merged


def build_recipe(sections: Mapping[str, object], *, folder: Path = Path()) -> Recipe:
    """The recipe with these sections, each a mapping of fields."""
    for name, fields in sections.items():
        if name not in _SECTIONS:
            raise UnknownName("recipe section", name, (*_SECTIONS, "extends"))
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
        model=_model(sections),
        teacher=_section(TeacherRecipe, sections, "teacher") if "teacher" in sections else None,
        adapter=_section(AdapterRecipe, sections, "adapter") if "adapter" in sections else None,
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
        own, other = ours.get(section, {}), theirs.get(section, {})
        for name in dict.fromkeys((*own, *other)):
            if name in _MAY_CHANGE.get(section, ()):
                continue
            here, there = own.get(name), other.get(name)
            if here != there:
                return f"[{section}] {name} is {here!r}, and was {there!r} in the checkpoint"
    return None


def _plain(part: Any) -> dict[str, Any]:
    """Its fields, with the names of what was found by name."""
    fields = dataclasses.asdict(part)
    for option in describe(type(part)):
        if option.folder is not None:
            inner = getattr(part, option.name)
            fields[option.name] = [*map(_named, inner)] if option.several else _named(inner)
    return fields


def _named(part: Any) -> dict[str, Any]:
    return {"name": lookup.name_of(part), **_plain(part)}


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
        fields = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
        sources.append(build(Source, {"format": kind, **fields}, kind="[data] source field"))
    return tuple(sources)


def _model(sections: Mapping[str, object]) -> NetworkRecipe:
    fields = _table(sections, "model")
    kind = fields.pop("kind", "decoder")
    if not isinstance(kind, str):
        known = ", ".join(lookup.names("training/networks"))
        raise InvalidRequest(f"[model] kind must be one of {known}, got {kind!r}.")
    cls: type[NetworkRecipe] = lookup.find("training/networks", kind, kind="[model] kind")
    return _section(cls, {"model": fields}, "model")


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
