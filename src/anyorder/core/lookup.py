"""A name is a module's name: methods (and objectives, architectures) are found by their file.

Nothing registers itself. `find("methods", "beam_search")` imports `anyorder/methods/beam_search.py`
and returns its class `BeamSearch`; listing names reads the folder without importing anything, so an
error in one file neither hides nor breaks the others.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from anyorder.core.errors import UnknownName

ROOT = Path(__file__).resolve().parent.parent


def names(folder: str) -> tuple[str, ...]:
    """Names of the modules in a folder of the package: "methods", "training/objectives", ..."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules([str(ROOT / folder)])))


def find(folder: str, name: str, *, kind: str) -> Any:
    """The public class of the module called `name`, named like its file in capitals."""
    if name not in names(folder):
        raise UnknownName(kind, name, names(folder))
    module = importlib.import_module(f"anyorder.{folder.replace('/', '.')}.{name}")
    return getattr(module, "".join(word.capitalize() for word in name.split("_")))


def name_of(instance: object) -> str:
    """The name under which an instance's class is found: that of its module."""
    return type(instance).__module__.rpartition(".")[2]
