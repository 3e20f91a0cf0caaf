"""A dataclass's fields as options: described, bounded, parsed, validated.

`Annotated[int, Range(1, 64), "beams kept at every step"]` is all that a field needs. From it come
validation of Python values, `-o name=value` on the command line, JSON Schema for servers and forms,
and the generated pages in docs. Unknown names are refused with the nearest known one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from anyorder.core import lookup
from anyorder.core.errors import InvalidRequest, UnknownName, UserError

T = TypeVar("T")

_DESCRIBED: dict[type[Any], tuple[Option, ...]] = {}
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True}
_BOOLEANS |= {"false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True)
class Range:
    """Inclusive bounds of a number. NaN is never inside."""

    minimum: float
    maximum: float = math.inf


@dataclass(frozen=True)
class Part:
    """The option is itself an object with options: an instance of a class in a folder of the
    package. Given as a name, or as a mapping of "name" and the part's own options; on a command
    line as `drafter=prompt_lookup` and `drafter.match=3`."""

    folder: str
    several: bool = False
    """A tuple of such objects, given as a list; in recipes, which no form or schema is made for."""


@dataclass(frozen=True, kw_only=True)
class Spelt:
    """Options of a part as a command line spells them, where it does not say which part: the model
    may have one of its own, and it is not loaded yet."""

    options: Mapping[str, object]
    """Texts are to be parsed; "name" may have been found out."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One field of an options class, as documentation, forms and parsers need it."""

    name: str
    kind: type
    """bool, int, float or str; any other type is accepted from Python only."""
    optional: bool
    default: Any
    bounds: Range | None
    choices: tuple[str, ...]
    description: str
    folder: str | None = None
    """Where its values' classes are, for a `Part`."""
    several: bool = False
    """Is it a tuple of such parts?"""

    def check(self, value: object) -> object:
        """Return `value` in the field's own type; InvalidRequest says what is allowed."""
        if value is None and self.optional:
            return None
        if self.several:
            if not isinstance(value, list | tuple):
                raise InvalidRequest(f"{self.name} must be {self.allowed}, got {value!r}.")
            return tuple(v if isinstance(v, self.kind) else self._build_part(v) for v in value)
        if self.folder is not None and not isinstance(value, self.kind):
            return self._build_part(value)
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if self.kind in (bool, int, float, str) and type(value) is not self.kind:
            raise InvalidRequest(f"{self.name} must be {self.allowed}, got {value!r}.")
        if self.choices and value not in self.choices:
            raise InvalidRequest(f"{self.name} must be {self.allowed}, got {value!r}.")
        if self.bounds is not None:
            number = typing.cast(float, value)
            # Written so that NaN fails: every comparison with NaN is false.
            if not self.bounds.minimum <= number <= self.bounds.maximum:
                raise InvalidRequest(f"{self.name} must be {self.allowed}, got {value!r}.")
        return value

    def _build_part(self, value: object) -> object:
        fields: dict[str, object] = {}
        is_spelt = isinstance(value, Spelt)
        if isinstance(value, Spelt):
            value = value.options
        if isinstance(value, Mapping):
            fields = dict(value)
            value = fields.pop("name", None if self.several else lookup.name_of(self.default))
        if not isinstance(value, str):
            raise InvalidRequest(f"{self.name} must be {self.allowed}, got {value!r}.")
        cls, kind = lookup.find(self.folder or "", value, kind=self.name), f"{value} option"
        if is_spelt:
            texts = [f"{name}={text}" for name, text in fields.items() if isinstance(text, str)]
            fields |= parse(cls, texts, kind=kind)
        return build(cls, fields, kind=kind)

    def parse(self, text: str) -> object:
        """The value that `text` spells on a command line."""
        if self.optional and text.lower() == "none":
            return None
        if self.folder is not None and not text.startswith(("{", "[")):
            return text.split(",") if self.several else text
        try:
            if self.kind is bool:
                return _BOOLEANS[text.lower()]
            if self.kind is str:
                return text
            if self.kind in (int, float):
                return self.kind(text)
            return json.loads(text)
        except (KeyError, ValueError):
            raise InvalidRequest(f"{self.name} must be {self.allowed}, got {text!r}.") from None

    @property
    def allowed(self) -> str:
        """The allowed values in words, for messages and tables."""
        if self.choices:
            words = "one of " + ", ".join(self.choices)
        elif self.folder is not None:
            words = "a list of " if self.several else "one of "
            words += ", ".join(lookup.names(self.folder))
        elif self.bounds is not None:
            low, high = self.bounds.minimum, self.bounds.maximum
            noun = "an integer" if self.kind is int else "a number"
            words = f"{noun} of at least {low}"
            if high != math.inf:
                words = f"{noun} from {low} to {high}"
        else:
            words = {bool: "true or false", int: "an integer", float: "a number", str: "text"}.get(
                self.kind, self.kind.__name__
            )
        return words + (" or none" if self.optional else "")


def describe(cls: type[Any]) -> tuple[Option, ...]:
    """The options of a dataclass, in field order. Fields without a description are not options."""
    if cls not in _DESCRIBED:
        _DESCRIBED[cls] = tuple(_describe(cls))
    return _DESCRIBED[cls]


def _describe(cls: type[Any]) -> Iterator[Option]:
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        extras = getattr(hint, "__metadata__", ())
        description = next((extra for extra in extras if isinstance(extra, str)), None)
        if description is None:
            continue
        base = typing.get_args(hint)[0]
        optional = False
        if typing.get_origin(base) in (typing.Union, types.UnionType):
            members = [member for member in typing.get_args(base) if member is not type(None)]
            optional = len(members) < len(typing.get_args(base))
            base = members[0] if len(members) == 1 else object
        choices: tuple[str, ...] = ()
        if typing.get_origin(base) is Literal:
            choices, base = typing.get_args(base), str
        part = next((extra for extra in extras if isinstance(extra, Part)), None)
        if part is not None and part.several:
            base = typing.get_args(base)[0]
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        yield Option(
            name=field.name,
            kind=base if isinstance(base, type) else object,
            optional=optional,
            default=default,
            bounds=next((extra for extra in extras if isinstance(extra, Range)), None),
            choices=choices,
            description=description,
            folder=None if part is None else part.folder,
            several=part is not None and part.several,
        )


def validate(instance: Any) -> None:
    """Check every described field of a dataclass instance; for use in `__post_init__`."""
    for option in describe(type(instance)):
        option.check(getattr(instance, option.name))


def build(cls: type[T], values: Mapping[str, object], *, kind: str = "option") -> T:
    """`cls(**values)` with unknown names refused, every value checked and none missing."""
    known = {option.name: option for option in describe(cls)}
    for name in values:
        if name not in known:
            raise UnknownName(kind, name, known)
    for option in known.values():
        if option.default is dataclasses.MISSING and option.name not in values:
            raise InvalidRequest(f"{kind} {option.name} is missing; it must be {option.allowed}.")
    return cls(**{name: known[name].check(value) for name, value in values.items()})


def overlay(
    cls: type, defaults: Mapping[str, object], values: Mapping[str, object]
) -> dict[str, object]:
    """`values`, and what they leave open as `defaults` have it; that may be which part of several
    some options belong to."""
    merged = {**defaults, **values}
    for option in describe(cls):
        given, default = values.get(option.name), defaults.get(option.name)
        if default is None or not _is_unnamed(option, given):
            continue
        base = default if isinstance(default, Mapping) else {"name": default}
        joined = {**base, **_options_of(given)}
        merged[option.name] = Spelt(options=joined) if isinstance(given, Spelt) else joined
    return merged


def parse(cls: type, assignments: list[str], *, kind: str = "option") -> dict[str, object]:
    """`["width=4", "early=never"]` as checked values for `build`; options of a part that is not
    named as they are spelt."""
    known = {option.name: option for option in describe(cls)}
    values: dict[str, Any] = {}
    parts: dict[str, list[str]] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator:
            raise InvalidRequest(f"an option is written name=value, got {assignment!r}.")
        name, _, inner = name.partition(".")
        if name not in known or (inner and known[name].folder is None):
            raise UnknownName(kind, f"{name}.{inner}" if inner else name, known)
        if inner:
            parts.setdefault(name, []).append(f"{inner}={text}")
        else:
            values[name] = known[name].parse(text)
    for name, inner_assignments in parts.items():
        given = values.get(name, {})
        if _is_unnamed(known[name], given):
            spelt = _spelt(known[name], inner_assignments)
            values[name] = Spelt(options={**_options_of(given), **spelt})
            continue
        fields = dict(given) if isinstance(given, Mapping) else {"name": given}
        if not isinstance(fields["name"], str):
            known[name].check(fields)  # says what is allowed
        part = lookup.find(known[name].folder or "", fields["name"], kind=name)
        inner_kind = f"{fields['name']} option"
        values[name] = {**fields, **parse(part, inner_assignments, kind=inner_kind)}
    return {
        name: value if _is_unnamed(known[name], value) else known[name].check(value)
        for name, value in values.items()
    }


def _is_unnamed(option: Option, value: object) -> bool:
    """Are these a part's options without a word on which part?"""
    is_several = isinstance(value, Mapping | Spelt)
    return option.folder is not None and is_several and "name" not in _options_of(value)


def _options_of(value: object) -> Mapping[str, object]:
    """Of a part, by name."""
    if isinstance(value, Spelt):
        return value.options
    return typing.cast(Mapping[str, object], value)


def _spelt(option: Option, assignments: list[str]) -> dict[str, str]:
    """Options of a part, whichever it is; refused where they suit none."""
    folder, default = option.folder or "", lookup.name_of(option.default)
    spelt: dict[str, str] = {}
    for assignment in assignments:
        refusals: list[UserError] = []
        for name in sorted(lookup.names(folder), key=lambda name: name != default):
            part = lookup.find(folder, name, kind=option.name)
            try:
                parse(part, [assignment], kind=f"{name} option")
                break
            except UserError as error:
                refusals.append(error)
        else:
            known = (error for error in refusals if not isinstance(error, UnknownName))
            raise next(known, refusals[0])
        inner, _, text = assignment.partition("=")
        spelt[inner] = text
    return spelt


def json_schema(cls: type) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of an options class, with unknown properties forbidden."""
    names = {bool: "boolean", int: "integer", float: "number", str: "string"}
    properties: dict[str, Any] = {}
    for option in describe(cls):
        entry: dict[str, Any] = {"description": option.description}
        default = option.default
        if option.folder is not None:
            default = lookup.name_of(default)
            entry["anyOf"] = [{"enum": list(lookup.names(option.folder))}]
            for name in lookup.names(option.folder):
                part = json_schema(lookup.find(option.folder, name, kind=option.name))
                part["properties"] = {"name": {"const": name}, **part["properties"]}
                entry["anyOf"].append({**part, "required": ["name"]})
        if option.kind in names:
            kind = names[option.kind]
            entry["type"] = [kind, "null"] if option.optional else kind
        if option.choices:
            entry["enum"] = [*option.choices, None] if option.optional else list(option.choices)
        if option.bounds is not None:
            entry["minimum"] = option.bounds.minimum
            if option.bounds.maximum != math.inf:
                entry["maximum"] = option.bounds.maximum
        if default is not dataclasses.MISSING:
            entry["default"] = default
        properties[option.name] = entry
    return {"type": "object", "properties": properties, "additionalProperties": False}
