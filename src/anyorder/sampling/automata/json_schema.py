"""JSON Schemas as patterns, as far as the texts that conform are regular.

What is made conforms; not all that conforms is made. Objects hold the properties that the schema
lists, in its order, and no others; where it lists none, keys are any strings and their values what
`additionalProperties` says. Strings of a `pattern` are written with the shortest escapes, exponents
have two digits at most. There may be any whitespace between tokens; the canvas bounds it.

What has no such form is refused by name: values of any kind, recursion, keywords in combination.
`schema` has checked the keywords before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from typing import Any

from anyorder.core.errors import GuideError
from anyorder.sampling.automata.integers import integers
from anyorder.sampling.automata.pattern import (
    EMPTY,
    LAST,
    Chain,
    Either,
    Letters,
    Listing,
    Pattern,
    Repeat,
    any_of,
    chain,
    either,
    letters,
    literal,
    none_of,
    optional,
)
from anyorder.sampling.automata.regex import regex_pattern

_WHITESPACE = Repeat(part=any_of(" \t\n\r"))
_DIGITS = letters([(48, 57)])
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b",
            "\f": "\\f"}  # fmt: skip
_NEVER_PLAIN = [(0, 31), (34, 34), (92, 92)]
"""Letters that JSON's strings hold escaped only."""
_CHARACTER = either([none_of(_NEVER_PLAIN), chain(literal("\\"), any_of('"\\/bfnrt'))])
_COMMA = chain(_WHITESPACE, literal(","), _WHITESPACE)
_COLON = chain(_WHITESPACE, literal(":"), _WHITESPACE)
_NUMBER = chain(
    integers(None, None),
    optional(chain(literal("."), Repeat(part=_DIGITS, least=1))),
    optional(chain(any_of("eE"), optional(any_of("+-")), Repeat(part=_DIGITS, least=1, most=2))),
)
_PLAIN: dict[str, Pattern] = {
    "null": literal("null"),
    "boolean": either([literal("true"), literal("false")]),
    "number": _NUMBER,
}
_OWN = {
    "string": {"minLength", "maxLength", "pattern"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
}
"""Keywords that go with a type here."""
_CHOICES = ("const", "enum", "anyOf", "oneOf", "allOf", "$ref")
_IGNORED = {
    "$schema", "$id", "$comment", "title", "description", "default", "examples", "deprecated",
    "readOnly", "writeOnly", "$defs", "definitions",
}  # fmt: skip


def json_schema_pattern(schema: Mapping[str, Any]) -> Pattern:
    """The pattern of a schema; GuideError, naming the place, where it has none."""
    return _Reader(schema).read(schema, "#", ())


class _Reader:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root

    def read(self, schema: Any, place: str, within: tuple[str, ...]) -> Pattern:
        """`within`: the references that led here."""
        if schema is False:
            return Either(options=())
        if schema is True or not schema.keys() - _IGNORED:
            raise _refuse(place, "values of any kind; give their type")
        own = {name: value for name, value in schema.items() if name not in _IGNORED}
        for name in _CHOICES:
            if name in own:
                return self._choice(name, own, place, within)
        types = own.get("type")
        if types is None:
            raise _refuse(place, f"{' and '.join(sorted(own))} without a type; give the type")
        types = [types] if isinstance(types, str) else types
        known = set().union({"type"}, *(_OWN.get(name, ()) for name in types))
        if strange := sorted(own.keys() - known):
            raise _refuse(place, f"{strange[0]} for {' or '.join(types)}")
        return either(self._typed(name, own, place, within) for name in types)

    def _choice(
        self, name: str, own: dict[str, Any], place: str, within: tuple[str, ...]
    ) -> Pattern:
        value = own.pop(name)
        if name in ("const", "enum"):
            options = [value] if name == "const" else value
            if _has_types(options, own.get("type")):
                own.pop("type")
        if own:
            raise _refuse(place, f"{name} together with {' and '.join(sorted(own))}")
        if name in ("const", "enum"):
            return either(_value(option) for option in options)
        if name == "$ref":
            if value in within:
                raise _refuse(place, f"{value} inside of itself, which nests without end")
            return self.read(self._find(value, place), value, (*within, value))
        if name == "allOf" and len(value) != 1:
            raise _refuse(place, "allOf of several schemas; write them as one")
        if name == "oneOf" and not _apart(value):
            raise _refuse(place, "oneOf whose schemas do not differ in type; use anyOf")
        return either(
            self.read(inner, f"{place}/{name}/{index}", within) for index, inner in enumerate(value)
        )

    def _find(self, reference: str, place: str) -> Any:
        found: Any = self._root
        path = reference.split("/")
        for part in path[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or name not in found:
                raise _refuse(place, f"{reference}, which leads nowhere")
            found = found[name]
        if path[0] != "#":
            raise _refuse(place, f"{reference}, which is no place of the same schema")
        return found

    def _typed(
        self, name: str, own: Mapping[str, Any], place: str, within: tuple[str, ...]
    ) -> Pattern:
        if name in _PLAIN:
            return _PLAIN[name]
        if name == "string":
            return _string(own, place)
        if name == "integer":
            return integers(*_bounds(own, place))
        if name == "object":
            return self._object(own, place, within)
        if name == "array":
            return self._array(own, place, within)
        raise _refuse(place, f"the type {name!r}")

    def _object(self, own: Mapping[str, Any], place: str, within: tuple[str, ...]) -> Pattern:
        properties, required = own.get("properties", {}), own.get("required", ())
        others = own.get("additionalProperties", True)
        if missing := [name for name in required if name not in properties]:
            raise _refuse(place, f"the required property {missing[0]!r} without its schema")
        if properties:
            if isinstance(others, Mapping):
                raise _refuse(place, "additionalProperties of a schema beside properties")
            members: Pattern = Listing(
                items=tuple(
                    (
                        chain(
                            _value(name),
                            _COLON,
                            self.read(inner, f"{place}/properties/{name}", within),
                        ),
                        name in required,
                    )
                    for name, inner in properties.items()
                ),
                separator=_COMMA,
            )
        elif others is False:
            members = EMPTY
        else:
            inner = self.read(others, f"{place}/additionalProperties", within)
            key = chain(literal('"'), Repeat(part=_CHARACTER), literal('"'))
            members = _several(chain(key, _COLON, inner), 0, None)
        return chain(literal("{"), _WHITESPACE, members, _WHITESPACE, literal("}"))

    def _array(self, own: Mapping[str, Any], place: str, within: tuple[str, ...]) -> Pattern:
        least, most = own.get("minItems", 0), own.get("maxItems")
        first = own.get("prefixItems", ())
        if first:
            if own.get("items") is not False or most is not None:
                raise _refuse(place, "prefixItems without items of false, or with maxItems")
            items = [
                self.read(inner, f"{place}/prefixItems/{index}", within)
                for index, inner in enumerate(first)
            ]
            content: Pattern = _prefixes(items, least)
        elif own.get("items") is False or most == 0:
            content = EMPTY if not least else Either(options=())
        else:
            inner = self.read(own.get("items", True), f"{place}/items", within)
            content = _several(inner, least, most)
        return chain(literal("["), _WHITESPACE, content, _WHITESPACE, literal("]"))


def _refuse(place: str, what: str) -> GuideError:
    return GuideError(
        f"a canvas cannot be guided by a JSON Schema with {what} (at {place}); change it, or use "
        "autoregressive."
    )


def _several(item: Pattern, least: int, most: int | None) -> Pattern:
    """Items with commas between them."""
    if most is not None and most < max(least, 1):
        return EMPTY if not least else Either(options=())
    rest = Repeat(
        part=chain(_COMMA, item),
        least=max(least - 1, 0),
        most=None if most is None else most - 1,
    )
    some = chain(item, rest)
    return some if least else optional(some)


def _prefixes(items: Seq[Pattern], least: int) -> Pattern:
    """The first items, at least so many."""
    content: Pattern = EMPTY
    for index in range(len(items) - 1, -1, -1):
        one = chain(*([_COMMA] if index else []), items[index], content)
        content = one if index < least else optional(one)
    return content if least <= len(items) else Either(options=())


def _string(own: Mapping[str, Any], place: str) -> Pattern:
    least, most, pattern = own.get("minLength", 0), own.get("maxLength"), own.get("pattern")
    if pattern is None:
        if most is not None and most < least:
            return Either(options=())
        content: Pattern = Repeat(part=_CHARACTER, least=least, most=most)
    elif least or most is not None:
        raise _refuse(place, "pattern together with minLength or maxLength")
    else:
        anything = Repeat(part=letters([(0, LAST)]))
        before = EMPTY if pattern.startswith("^") else anything
        after = EMPTY if pattern.endswith("$") and not pattern.endswith("\\$") else anything
        content = _escaped(chain(before, regex_pattern(pattern), after))
    return chain(literal('"'), content, literal('"'))


def _escaped(pattern: Pattern) -> Pattern:
    """The pattern as it is written inside of a JSON string."""
    if isinstance(pattern, Letters):
        plain = none_of([*none_of(pattern.ranges).ranges, *_NEVER_PLAIN])
        escapes = [
            escape
            for letter, escape in _ESCAPES.items()
            if any(low <= ord(letter) <= high for low, high in pattern.ranges)
        ]
        return either([plain, *map(literal, escapes)])
    if isinstance(pattern, Chain):
        return Chain(parts=tuple(map(_escaped, pattern.parts)))
    if isinstance(pattern, Either):
        return Either(options=tuple(map(_escaped, pattern.options)))
    assert isinstance(pattern, Repeat), "regexes have no listings"
    return Repeat(part=_escaped(pattern.part), least=pattern.least, most=pattern.most)


def _bounds(own: Mapping[str, Any], place: str) -> tuple[int | None, int | None]:
    """The least and the largest integer."""
    for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        if name in own and type(own[name]) is not int:
            raise _refuse(place, f"the {name} {own[name]!r} of integers")
    lows = [own["minimum"]] if "minimum" in own else []
    lows += [own["exclusiveMinimum"] + 1] if "exclusiveMinimum" in own else []
    highs = [own["maximum"]] if "maximum" in own else []
    highs += [own["exclusiveMaximum"] - 1] if "exclusiveMaximum" in own else []
    return max(lows, default=None), min(highs, default=None)


def _value(value: Any) -> Pattern:
    """Exactly this value; whitespace is free between its tokens."""
    if isinstance(value, Mapping):
        items = tuple((chain(_value(k), _COLON, _value(v)), True) for k, v in value.items())
        content: Pattern = Listing(items=items, separator=_COMMA)
        return chain(literal("{"), _WHITESPACE, content, _WHITESPACE, literal("}"))
    if isinstance(value, list):
        content = Listing(items=tuple((_value(item), True) for item in value), separator=_COMMA)
        return chain(literal("["), _WHITESPACE, content, _WHITESPACE, literal("]"))
    return literal(json.dumps(value, ensure_ascii=False))


_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,),
    "null": (type(None),), "object": (dict,), "array": (list,),
}  # fmt: skip


def _has_types(values: Seq[Any], types: Any) -> bool:
    """Is each of the values of one of the types?"""
    names = [types] if isinstance(types, str) else types or ()
    return all(
        any(
            isinstance(value, _KINDS[name]) and (isinstance(value, bool) == (name == "boolean"))
            for name in names
            if name in _KINDS
        )
        for value in values
    )


def _apart(schemas: Seq[Any]) -> bool:
    """Does nothing conform to two of the schemas, by their types?"""
    seen: set[str] = set()
    for schema in schemas:
        types = schema.get("type") if isinstance(schema, Mapping) else None
        names = {types} if isinstance(types, str) else set(types or ())
        if "number" in names:
            names.add("integer")
        elif "integer" in names:
            names.add("number")
        if not names or names & seen:
            return False
        seen |= names
    return True
