"""Which JSON Schemas can guide a text: every keyword is either honoured or refused by name.

The grammar library refuses most keywords it does not implement, but passes over names it has never
heard of, over annotations that some tools give a meaning (`nullable`), and over its own switch for
leniency. JSON Schema itself would let unknown keywords pass; a guide that drops a constraint for a
misspelt name would not be one.

Departures that remain: properties come in the order in which the schema lists them, and keys that
it does not list (additionalProperties, patternProperties) may come twice, where JSON readers keep
the last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from anyorder.core.errors import GuideError

_ANNOTATIONS = {
    "$schema", "$id", "$comment", "title", "description", "default", "examples", "deprecated",
    "readOnly", "writeOnly",
}  # fmt: skip
_VALUES = {
    "$ref", "type", "const", "enum", "minItems", "maxItems", "required", "minProperties",
    "maxProperties", "minLength", "maxLength", "pattern", "format", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
}  # fmt: skip
_ONE_SCHEMA = {"items", "additionalProperties"}
_LISTS_OF_SCHEMAS = {"anyOf", "oneOf", "allOf", "prefixItems"}
_NAMED_SCHEMAS = {"properties", "patternProperties", "$defs", "definitions"}
_CONSTRAINTS = _VALUES | _ONE_SCHEMA | _LISTS_OF_SCHEMAS | _NAMED_SCHEMAS

MAX_PROPERTIES = 1_000
"""In one object; the time to compile grows with their square."""
_TEMPERATURE = re.compile(r"^\s*\w+\[[^]\n]*\btemperature\s*=", re.MULTILINE)
_EMBEDDED = re.compile(r"%json\s*(?=[{])")


def check_schema(schema: object, place: str = "#") -> None:
    """Raise GuideError for the first keyword, if any, that could not be honoured."""
    pending = [(place, schema)]
    while pending:
        place, schema = pending.pop()
        if not isinstance(schema, Mapping):
            if isinstance(schema, bool):
                continue
            raise GuideError(f"{place} of the JSON Schema must be an object or a boolean.")
        for keyword in schema:
            if keyword not in _CONSTRAINTS and keyword not in _ANNOTATIONS:
                raise GuideError(
                    f"JSON Schema keyword {keyword!r} at {place} is not supported; supported are "
                    f"{', '.join(sorted(_CONSTRAINTS))}."
                )
        _check_counts(schema, place)
        pending += _inner(schema, place)


def check_grammar(grammar: str) -> None:
    """Raise GuideError for what the library would pass over in a Lark grammar: a temperature, which
    is the request's, and keywords of the JSON Schemas inside of it (`%json {...}`)."""
    if _TEMPERATURE.search(grammar):
        raise GuideError("a rule's temperature is not supported; set the request's temperature.")
    for match in _EMBEDDED.finditer(grammar):
        try:
            schema, _ = json.JSONDecoder().raw_decode(grammar, match.end())
        except ValueError as error:
            raise GuideError(f"the JSON Schema after %json is not valid JSON: {error}.") from None
        check_schema(schema, "%json")


def _check_counts(schema: Mapping[str, Any], place: str) -> None:
    """Keys that may repeat cannot be counted: only one of them is sure to be there."""
    least, required = schema.get("minProperties", 0), schema.get("required", ())
    if isinstance(least, int) and isinstance(required, list | tuple) and least > len(required) + 1:
        raise GuideError(
            f"minProperties at {place} is {least}; at most one more than the number of required "
            f"properties ({len(required)}) is supported."
        )


def _inner(schema: Mapping[str, Any], place: str) -> Iterator[tuple[str, object]]:
    for keyword, value in schema.items():
        where = f"{place}/{keyword}"
        if keyword in _ONE_SCHEMA:
            yield where, value
        elif keyword in _LISTS_OF_SCHEMAS:
            if not isinstance(value, list):
                raise GuideError(f"{where} of the JSON Schema must be a list of schemas.")
            yield from ((f"{where}/{index}", inner) for index, inner in enumerate(value))
        elif keyword in _NAMED_SCHEMAS:
            if not isinstance(value, Mapping):
                raise GuideError(f"{where} of the JSON Schema must map names to schemas.")
            if len(value) > MAX_PROPERTIES:
                raise GuideError(
                    f"{where} of the JSON Schema has {len(value)} entries; at most "
                    f"{MAX_PROPERTIES} are allowed."
                )
            yield from ((f"{where}/{name}", inner) for name, inner in value.items())
