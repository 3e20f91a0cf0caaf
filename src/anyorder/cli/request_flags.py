"""Every control of a `Request` as a flag, read off its fields, and back into a `Request`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from anyorder.cli.files import text_or_file
from anyorder.core import lookup
from anyorder.core.errors import InvalidRequest, UnknownName
from anyorder.core.options import Option, describe, parse
from anyorder.core.request import Guide, Prompt, Request

_METAVARS = {int: "N", float: "X", str: "TEXT"}
_GUIDES = ("json_schema", "regex", "lark")


def flag_of(name: str) -> str:
    """`--max-new-tokens` for `max_new_tokens`."""
    return "--" + name.replace("_", "-")


def add_request_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for each described field of Request, and for each of the others by hand."""
    group = parser.add_argument_group("method and sampling")
    for option in describe(Request):
        if option.name == "method":
            group.add_argument(
                "--method", metavar="NAME", help=f"{_help(option)} [{option.default}]"
            )
            group.add_argument(
                "-o",
                "--option",
                metavar="NAME=VALUE",
                action="append",
                help="an option of the method (repeatable); `anyorder methods NAME` lists them",
            )
        elif option.kind is bool:
            action = argparse.BooleanOptionalAction
            group.add_argument(flag_of(option.name), action=action, help=_help(option))
        else:
            default = "none" if option.default is None else option.default
            text = f"{_help(option)} [{default}]" if default != "" else _help(option)
            metavar = _METAVARS[option.kind]
            flags = [flag_of(option.name), *([f"-{option.name}"] * (len(option.name) == 1))]
            group.add_argument(*flags, metavar=metavar, help=text)
    add = group.add_argument
    add("--negative-prompt", metavar="TEXT", help="what guidance moves away from")
    add("--logit-bias", metavar="ID=X", action="append", help="add to a token's logit (repeatable)")
    add("--bad-word", metavar="TEXT", action="append", help="never generate this (repeatable)")
    group = parser.add_argument_group("where the text ends, and what it must look like")
    add = group.add_argument
    add("--stop", metavar="TEXT", action="append", help="end before this text (repeatable)")
    add("--stop-token", metavar="ID", action="append", help="end after this token id (repeatable)")
    add("--json-schema", metavar="FILE|JSON", help="JSON that conforms to a schema")
    add("--regex", metavar="PATTERN", help="text that a regular expression matches")
    add("--lark", metavar="FILE|GRAMMAR", help="text in the language of a Lark grammar")
    add("--choices", metavar="TEXT", nargs="+", help="exactly one of these texts")
    add("--choice", metavar="TEXT", action="append", help="one more of --choices (repeatable)")


def request_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fields of Request for the flags that were given; UserError for a value out of range."""
    fields: dict[str, Any] = {}
    for option in describe(Request):
        value = getattr(arguments, option.name)
        if value is not None:
            fields[option.name] = option.check(
                option.parse(value) if isinstance(value, str) else value
            )
    if arguments.option is not None:
        fields["options"] = method_options(fields.get("method", Request.method), arguments.option)
    for name in ("negative_prompt", "stop"):
        if getattr(arguments, name) is not None:
            fields[name] = getattr(arguments, name)
    if arguments.bad_word is not None:
        fields["bad_words"] = arguments.bad_word
    if arguments.stop_token is not None:
        fields["stop_tokens"] = [_integer("--stop-token", text) for text in arguments.stop_token]
    if arguments.logit_bias is not None:
        fields["logit_bias"] = dict(_bias(text) for text in arguments.logit_bias)
    guide = _guide(arguments)
    if guide is not None:
        fields["guide"] = guide
    return fields


def method_options(method: str, assignments: list[str]) -> dict[str, object]:
    """`["width=4"]` as checked options of a method."""
    if method not in lookup.names("methods"):
        raise UnknownName("method", method, lookup.names("methods"))
    cls = lookup.find("methods", method, kind="method")
    return parse(cls, assignments, kind=f"{method} option")


def make_request(prompt: Prompt, fields: Mapping[str, Any]) -> Request:
    """The request, with its method's name and options checked before any model is loaded."""
    request = Request(prompt=prompt, **fields)
    method_options(request.method, [])
    return request


def _help(option: Option) -> str:
    return option.description.replace("%", "%%")


def _integer(flag: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidRequest(f"{flag} takes a token id, got {text!r}.") from None


def _bias(text: str) -> tuple[int, float]:
    token, separator, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        separator = ""
    if not separator:
        raise InvalidRequest(f"--logit-bias is written ID=NUMBER, got {text!r}.")
    return _integer("--logit-bias", token), number


def _guide(arguments: argparse.Namespace) -> Guide | None:
    choices = [*(arguments.choices or ()), *(arguments.choice or ())]
    given = [name for name in _GUIDES if getattr(arguments, name) is not None]
    given += ["choices"] * bool(choices)
    if len(given) > 1:
        flags = " and ".join(flag_of(name) for name in given)
        raise InvalidRequest(f"{flags} exclude each other; give one.")
    if arguments.json_schema is not None:
        return Guide.json_schema(text_or_file(arguments.json_schema, marks='{["'))
    if arguments.regex is not None:
        return Guide.regex(arguments.regex)
    if arguments.lark is not None:
        return Guide.lark(text_or_file(arguments.lark, marks=":\n"))
    return Guide.choices(choices) if choices else None
