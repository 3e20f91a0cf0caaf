"""Generate text by every known decoding paradigm with one engine.

    engine = anyorder.Engine("smollm2-135m-instruct")
    print(engine.generate("The capital of France is", max_new_tokens=8).text)

Names are imported when first used, so `import anyorder` costs milliseconds.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anyorder.core.errors import AnyorderError as AnyorderError
    from anyorder.core.errors import RequestFailed as RequestFailed
    from anyorder.core.errors import UserError as UserError
    from anyorder.core.request import Completion as Completion
    from anyorder.core.request import Event as Event
    from anyorder.core.request import Guide as Guide
    from anyorder.core.request import Report as Report
    from anyorder.core.request import Request as Request
    from anyorder.core.request import Score as Score
    from anyorder.engine.engine import Engine as Engine
    from anyorder.methods import methods as methods

__version__ = "0.1.0"

_HOMES = {
    "AnyorderError": "anyorder.core.errors",
    "Completion": "anyorder.core.request",
    "Engine": "anyorder.engine.engine",
    "Event": "anyorder.core.request",
    "Guide": "anyorder.core.request",
    "Report": "anyorder.core.request",
    "Request": "anyorder.core.request",
    "RequestFailed": "anyorder.core.errors",
    "Score": "anyorder.core.request",
    "UserError": "anyorder.core.errors",
}
__all__ = [*_HOMES, "methods"]


def __getattr__(name: str) -> Any:
    if name == "methods":  # the folder of methods is callable and lists them
        return importlib.import_module("anyorder.methods")
    if name not in _HOMES:
        raise AttributeError(f"module 'anyorder' has no attribute {name!r}")
    from anyorder.core.garbage import uncollected

    with uncollected(for_good="torch" not in sys.modules):
        value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
