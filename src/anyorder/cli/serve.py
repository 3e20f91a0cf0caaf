"""Serve a model over HTTP, in the shapes of OpenAI's and Anthropic's APIs; see docs/serving.md.

Listens on this machine alone unless --host says otherwise. SIGTERM lets running answers finish.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from anyorder.cli.files import read_text
from anyorder.cli.model_flags import DEFAULT_MODEL, add_model_flags, open_engine
from anyorder.cli.request_flags import flag_of, method_options
from anyorder.cli.terminal import note
from anyorder.core.errors import UserError
from anyorder.core.options import build, describe, parse

if TYPE_CHECKING:
    from anyorder.server.limits import Limits

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to listen, who may ask, and how much."""
    from anyorder.server.limits import Limits

    parser.usage = "%(prog)s [MODEL] [--host HOST] [--port N] [--api-key KEY ...] [FLAGS]"
    add = parser.add_argument
    add("name", metavar="MODEL", nargs="?", help="the same as --model")
    add("--host", default="127.0.0.1", help="address to listen on [127.0.0.1: this machine alone]")
    add("--port", default="8000", metavar="N", help="port; 0 takes any that is free [8000]")
    add("--api-key", metavar="KEY", action="append", help="require this key (repeatable)")
    add("--api-key-file", metavar="FILE", help="require one of the keys in this file, one a line")
    add("--served-name", metavar="NAME", help="what clients call the model [its own name]")
    add("--method", default="autoregressive", metavar="NAME", help="where a request names none")
    add(
        "--cors-origin",
        metavar="ORIGIN",
        action="append",
        help="let pages of this site use the server from a browser (repeatable) [none]",
    )
    group = parser.add_argument_group("limits")
    for option in describe(Limits):
        metavar = "N" if option.kind is int else "X"
        text = f"{option.description} [{option.default}]"
        group.add_argument(flag_of(option.name), metavar=metavar, help=text)
    add_model_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Load, listen, serve until a signal ends it."""
    for package in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"serve needs {package}: pip install 'anyorder[serve]'.")
    if arguments.name is not None:
        if arguments.model != DEFAULT_MODEL:
            raise UserError(f"the model is given twice: {arguments.name} and {arguments.model}.")
        arguments.model = arguments.name
    method_options(arguments.method, [])
    limits, keys, port = _limits(arguments), _keys(arguments), _port(arguments.port)
    from anyorder.server.process import listen

    listener = listen(arguments.host, port)
    engine = open_engine(arguments)
    from anyorder.server.app import ServerOptions, create_app
    from anyorder.server.process import serve

    options = ServerOptions(
        name=arguments.served_name,
        method=arguments.method,
        keys=keys,
        hosts=_LOOPBACK if arguments.host in _LOOPBACK else None,
        origins=arguments.cors_origin or (),
        limits=limits,
    )
    app = create_app(engine, options)
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    url = f"http://{host}:{listener.getsockname()[1]}"
    name = arguments.served_name or engine.abilities.name
    serve(app, listener, on_start=lambda: note(f"{name} answers at {url}/v1 (Ctrl-C ends it)"))
    return 0


def _limits(arguments: argparse.Namespace) -> Limits:
    from anyorder.server.limits import Limits

    names = [option.name for option in describe(Limits)]
    given = [(name, getattr(arguments, name)) for name in names]
    texts = [f"{name}={value}" for name, value in given if value is not None]
    return build(Limits, parse(Limits, texts, kind="limit"), kind="limit")


def _keys(arguments: argparse.Namespace) -> list[str]:
    keys = list(arguments.api_key or ())
    if arguments.api_key_file is not None:
        lines = read_text(Path(arguments.api_key_file)).splitlines()
        keys += [line.strip() for line in lines if line.strip()]
        if not keys:
            raise UserError(f"{arguments.api_key_file} holds no key; write one a line.")
    if "" in keys:
        raise UserError("--api-key is empty; give a key, or leave it out to need none.")
    return keys


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise UserError(f"--port must be an integer from 0 to 65535, got {text!r}.")
    return int(text)
