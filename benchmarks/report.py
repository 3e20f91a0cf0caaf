"""Where figures were measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Where the figures were measured."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    libraries = ("anyorder", "torch", "transformers")
    return {
        "cpu": model,
        "num_cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{library: importlib.metadata.version(library) for library in libraries},
    }
