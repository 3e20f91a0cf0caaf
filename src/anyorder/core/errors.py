"""Every exception that anyorder raises on purpose.

    AnyorderError
    ├── UserError (a ValueError too)  what was asked for cannot be done; the message says what can
    │   ├── UnknownName               no such model, method, option, ...; offers the nearest name
    │   ├── InvalidRequest            a field of the request is out of range or contradicts another
    │   │   ├── ContextOverflow       prompt and new tokens exceed the model's context
    │   │   ├── PoolTooSmall          the request can never fit the KV pool
    │   │   └── GuideError            malformed or unsupported schema, regex or grammar
    │   ├── UnsupportedMethod         the model lacks what the method needs
    │   ├── CheckpointError           a model's files are damaged, hostile or of an unknown kind
    │   │   └── TemplateError         a chat template fails or tries to leave its sandbox
    │   └── ModelUnavailable          the model is not on this machine and cannot be fetched
    ├── RequestFailed                 a request failed while running; others went on
    └── TrainingStopped               the loss is no number or diverges

Messages are one line: what was given, what is allowed, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AnyorderError(Exception):
    """Base of everything raised on purpose."""


class UserError(AnyorderError, ValueError):
    """What was asked for cannot be done."""


class UnknownName(UserError):
    """A name that does not exist; the message lists or suggests those that do."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names, name = sorted(known), name[:100]
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        if not nearest and len(name) > 2:  # a beginning or another part of a longer name
            nearest = [other for other in names if name.lower() in other.lower()]
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        listing = f"{kind}s: {', '.join(names)}." if names else f"there are no {kind}s here."
        super().__init__(f"unknown {kind} {name!r}; {hint}{listing}")


class InvalidRequest(UserError):
    """A field of the request is out of range or contradicts another."""


class ContextOverflow(InvalidRequest):
    """Prompt and new tokens together exceed the model's context."""


class PoolTooSmall(InvalidRequest):
    """The request can never fit the KV pool, even alone."""


class GuideError(InvalidRequest):
    """A malformed or unsupported JSON Schema, regex, grammar or list of choices."""


class UnsupportedMethod(UserError):
    """The model lacks what the method needs."""


class CheckpointError(UserError):
    """A model's files are damaged, hostile or of an unknown kind."""


class TemplateError(CheckpointError):
    """A chat template fails, or tries to leave its sandbox."""


class ModelUnavailable(UserError):
    """The model is not on this machine and cannot be fetched."""


class RequestFailed(AnyorderError, RuntimeError):
    """A request failed while running; the cause is chained and other requests went on."""


class TrainingStopped(AnyorderError, RuntimeError):
    """Training cannot usefully go on; the message says at which step and what to try."""
