"""What the environment decides: the one module that reads environment variables.

    ANYORDER_CACHE    folder for downloaded models (default: the user's cache folder)
    ANYORDER_OFFLINE  1 forbids any download (default: 0)
    ANYORDER_THREADS  CPU threads for computing (default: torch's own choice)
    TRITON_INTERPRET  1 runs the kernels for GPUs on a CPU, operation by operation, to test them
                      (default: 0; triton reads it too)

Cheap to import: no torch.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from anyorder.core.errors import UserError

_BOOLEANS = {"": False, "0": False, "false": False, "no": False, "off": False}
_BOOLEANS |= {"1": True, "true": True, "yes": True, "on": True}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The environment's decisions."""

    cache_folder: Path
    """Holds models/ and, while pulling, downloads."""
    offline: bool
    """Never download anything."""
    num_threads: int | None
    """CPU threads for computing; None: torch decides."""
    interprets_kernels: bool = False
    """Run kernels for GPUs on a CPU."""

    @classmethod
    def load(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read the variables. Raises `UserError` for a value that makes no sense."""
        variables = os.environ if environment is None else environment
        return cls(
            cache_folder=_cache_folder(variables.get("ANYORDER_CACHE", "")),
            offline=_boolean("ANYORDER_OFFLINE", variables.get("ANYORDER_OFFLINE", "")),
            num_threads=_threads(variables.get("ANYORDER_THREADS", "")),
            interprets_kernels=_boolean("TRITON_INTERPRET", variables.get("TRITON_INTERPRET", "")),
        )


@functools.cache
def settings() -> Settings:
    """The settings of this process, read once."""
    return Settings.load()


def _cache_folder(value: str) -> Path:
    if value:
        return Path(value).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("anyorder", appauthor=False))


def _boolean(name: str, value: str) -> bool:
    if value.strip().lower() not in _BOOLEANS:
        raise UserError(f"{name} is {value!r}; set it to 1 or 0.")
    return _BOOLEANS[value.strip().lower()]


def _threads(value: str) -> int | None:
    if not value:
        return None
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= 4096:
        raise UserError(f"ANYORDER_THREADS is {value!r}; set it to a number from 1 to 4096.")
    return int(value)


def environment_with(changes: Mapping[str, str]) -> dict[str, str]:
    """The environment for a child process, with changes."""
    return {**os.environ, **changes}
