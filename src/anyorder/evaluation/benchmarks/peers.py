"""Peers' virtual environments, and the model in the forms that they read; made once and kept.

Everything lies in one folder, `peers` in the user's cache: an environment per peer, and `models`
with a folder per GGUF file, named after its content. What is there is complete: it is made under
another name, or, since an environment cannot be moved, counts only with the list of what was
installed in it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyorder.core.errors import AnyorderError
from anyorder.evaluation.benchmarks.sides import Side

HERE = Path(__file__).resolve().parent
_LOG_LINES = 3

Tell = Callable[[str], None]
"""Told what takes a while."""


class NotPrepared(AnyorderError):
    """A peer that cannot be had on this machine."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """What is installed for one engine."""

    name: str
    title: str
    requirements: tuple[str, ...]
    options: tuple[str, ...] = ()
    """Of pip."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """While pip builds."""

    def version(self) -> str:
        """Of the engine itself: the last requirement that bears its name."""
        plain = self.name.replace(".", "-")
        found = [line for line in self.requirements if line.startswith(plain)]
        return found[-1].partition("==")[2]


def read_peers(file: Path = HERE / "peers.toml") -> dict[str, Peer]:
    """All peers, with what is pinned."""
    with file.open("rb") as stream:
        entries: dict[str, dict[str, Any]] = tomllib.load(stream)
    return {
        name: Peer(
            name=name,
            title=entry["title"],
            requirements=tuple(entry["requirements"]),
            options=tuple(entry.get("options", ())),
            environment={
                key: value.replace("{folder}", str(HERE))
                for key, value in entry.get("environment", {}).items()
            },
        )
        for name, entry in entries.items()
    }


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Where peers are kept, and how they get there."""

    folder: Path
    environment: Callable[[Mapping[str, str]], dict[str, str]]
    """A child process's, with changes."""
    tell: Tell

    def python(self, peer: Peer) -> Path:
        """The interpreter of a peer's environment, which is made if need be. NotPrepared if it
        cannot be."""
        folder = self.folder / peer.name
        python = folder / "bin" / "python"
        if sys.platform == "win32":
            python = folder / "Scripts" / "python.exe"
        mark = folder / "installed.json"
        wanted = json.dumps([*peer.requirements, *peer.options, dict(peer.environment)])
        if mark.exists() and mark.read_text("utf-8") == wanted:
            return python
        self.tell(
            f"installing {peer.title} {peer.version()} into {folder}; llama.cpp takes longest"
        )
        shutil.rmtree(folder, ignore_errors=True)
        self._run([sys.executable, "-m", "venv", str(folder)])
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", *peer.options]
        # One after another: where torch is the build for CPUs that pip was told of, what comes
        # later finds it there and brings no other.
        for requirement in peer.requirements:
            self._run([*pip, requirement], peer.environment)
        mark.write_text(wanted, "utf-8")
        return python

    def weights(self, side: Side, model: Path, peers: Mapping[str, Peer]) -> Path:
        """The model as a side reads it; converted if need be."""
        recipe = RECIPES.get(side.weights)
        if recipe is None:
            return model
        with model.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        folder = self.folder / "models" / f"{model.stem}-{digest[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        return self._converted(side.weights, model, folder, peers)

    def _converted(self, name: str, model: Path, folder: Path, peers: Mapping[str, Peer]) -> Path:
        recipe = RECIPES.get(name)
        if recipe is None:
            return model
        target = folder / name
        if target.exists():
            return target
        source = self._converted(recipe.source, model, folder, peers)
        python = self.python(peers[recipe.peer])
        self.tell(f"converting {model.name} to {name}")
        with tempfile.TemporaryDirectory(dir=folder, prefix="unfinished-") as unfinished:
            made = Path(unfinished) / name
            script = [str(python), "-P", str(HERE / "conversion.py")]
            self._run([*script, recipe.function, str(source), str(made), *recipe.arguments])
            made.rename(target)
        return target

    def _run(self, command: list[str], changes: Mapping[str, str] | None = None) -> None:
        """Run to its end; NotPrepared with its last words if it fails."""
        done = subprocess.run(
            command,
            env=self.environment(changes or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        if done.returncode:
            words = " / ".join(done.stdout.strip().splitlines()[-_LOG_LINES:])
            raise NotPrepared(f"{' '.join(command[1:5])} ... failed: {words or done.returncode}")


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """How one form of the model is made of another."""

    peer: str
    """Whose environment can do it."""
    function: str
    source: str = ""
    """The form that it is made of; empty: the GGUF file."""
    arguments: tuple[str, ...] = ()


RECIPES = {
    "safetensors-float32": _Recipe(peer="transformers", function="safetensors"),
    "safetensors-bfloat16": _Recipe(
        peer="transformers",
        function="rounded",
        source="safetensors-float32",
        arguments=("bfloat16",),
    ),
    "q8_0.gguf": _Recipe(peer="llama.cpp", function="gguf", arguments=("Q8_0",)),
    "bf16.gguf": _Recipe(peer="llama.cpp", function="gguf", arguments=("BF16",)),
    "f16.gguf": _Recipe(peer="llama.cpp", function="gguf", arguments=("F16",)),
    "openvino-q4": _Recipe(peer="openvino", function="openvino"),
    "openvino-q8": _Recipe(peer="openvino", function="openvino", source="q8_0.gguf"),
    "openvino-f16": _Recipe(peer="openvino", function="openvino", source="f16.gguf"),
    "ctranslate2-int8": _Recipe(
        peer="ctranslate2",
        function="ctranslate2",
        source="safetensors-float32",
        arguments=("int8",),
    ),
    "ctranslate2-float32": _Recipe(
        peer="ctranslate2",
        function="ctranslate2",
        source="safetensors-float32",
        arguments=("float32",),
    ),
}
