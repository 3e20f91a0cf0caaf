"""What this machine offers and what anyorder finds on it; for bug reports, and for yourself."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_LIBRARIES = (
    *("torch", "numpy", "safetensors", "tokenizers", "gguf", "jinja2", "llguidance"),
    *("huggingface-hub", "rich", "transformers"),
)
_CPU_FLAGS = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"),  # x86
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),  # ARM
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The form of the answer."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Look and print."""
    findings = examine()
    if arguments.json:
        print(json.dumps(findings, ensure_ascii=False))
        return 0
    for section, entries in findings.items():
        print(section)
        for name, value in entries.items():
            print(f"  {name:<22} {_shown(value)}".rstrip())
    return 0


def examine() -> dict[str, dict[str, Any]]:
    """Everything, by section."""
    return {
        "versions": _versions(),
        "machine": _machine(),
        "torch": _torch(),
        "kernels": _kernels(),
        "models": _models(),
        "pip": _pip(),
    }


def _versions() -> dict[str, Any]:
    import anyorder

    found: dict[str, Any] = {"anyorder": anyorder.__version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _machine() -> dict[str, Any]:
    flags: set[str] = set()
    model = platform.processor()
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text("utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                flags.update(value.split())
            elif name.strip() == "model name":
                model = value.strip()
    found: dict[str, Any] = {
        "platform": platform.platform(),
        "cpu": model,
        "cpu_flags": [flag for flag in _CPU_FLAGS if flag in flags],
        "cpus": os.cpu_count(),
    }
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        page = os.sysconf("SC_PAGE_SIZE")
        found["memory_bytes"] = page * os.sysconf("SC_PHYS_PAGES")
        found["memory_free_bytes"] = page * os.sysconf("SC_AVPHYS_PAGES")
    return found


def _torch() -> dict[str, Any]:
    import torch

    devices = ["cpu"]
    for index in range(torch.cuda.device_count()):
        devices.append(f"cuda:{index} {torch.cuda.get_device_name(index)}")
    return {
        "devices": devices,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": "USE_MKLDNN=ON" in torch.__config__.show(),
        "compiled_for_cuda": torch.version.cuda,
    }


def _kernels() -> dict[str, Any]:
    """What computes: the package's own kernels, and torch's for a plain causal pass."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from anyorder.model.backends.native import LEVELS, level

    device = "cuda" if torch.cuda.is_available() else "cpu"
    query = torch.zeros(1, 1, 16, 16, device=device)
    kernels = []
    for name, backend in SDPBackend.__members__.items():
        if name in ("ERROR", "OVERRIDEABLE"):
            continue
        try:
            with sdpa_kernel(backend):
                torch.nn.functional.scaled_dot_product_attention(
                    query, query, query, is_causal=True
                )
        except RuntimeError:
            continue
        kernels.append(name.lower())
    return {"few_rows": LEVELS[level()] if level() else None, "torch_attention": kernels}


def _models() -> dict[str, Any]:
    from anyorder.model import catalog
    from anyorder.model.settings import settings

    folder = settings().cache_folder
    found: dict[str, Any] = {"cache_folder": str(folder), "offline": settings().offline}
    for facts in catalog.list_models():
        found[facts.name] = facts.num_bytes if facts.path is not None else None
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
    found["files"] = len(files)
    found["bytes"] = sum(path.stat().st_size for path in files)
    return found


def _pip() -> dict[str, Any]:
    """Downloads of named models go through pip."""
    command = [sys.executable, "-m", "pip", "--version"]
    answer = subprocess.run(command, capture_output=True, text=True)
    words = answer.stdout.split()
    return {"works": answer.returncode == 0, "version": words[1] if len(words) > 1 else None}


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "not there"
    if isinstance(value, int) and value > 10**6:
        return f"{value / 1e6:,.0f} MB"
    return ", ".join(value) if isinstance(value, list) else str(value)
