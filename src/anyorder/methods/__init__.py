"""Decoding methods, one a file. Calling this package lists them: `anyorder.methods()`.

The public contract wants both a folder `anyorder/methods/` and a function `anyorder.methods()`. A
module object may be given a class of its own, so this one simply can be called.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType

from anyorder.core import lookup
from anyorder.core.method import Method, Needs
from anyorder.core.options import Option, describe


@dataclass(frozen=True, kw_only=True)
class MethodInfo:
    """What there is to know about a method before running it."""

    name: str
    summary: str
    """First line of its class's docstring."""
    needs: Needs
    options: tuple[Option, ...]
    exact: bool


def methods() -> tuple[MethodInfo, ...]:
    """Every decoding method that exists, by name."""
    found = []
    for name in lookup.names("methods"):
        method: type[Method] = lookup.find("methods", name, kind="method")
        found.append(
            MethodInfo(
                name=name,
                summary=(method.__doc__ or "").strip().splitlines()[0],
                needs=method.needs,
                options=describe(method),
                exact=method.exact,
            )
        )
    return tuple(found)


class _CallableModule(ModuleType):
    def __call__(self) -> tuple[MethodInfo, ...]:
        return methods()


sys.modules[__name__].__class__ = _CallableModule
