"""A folder of safetensors files as a source of tensors: one file, or shards with an index.

Tensors of 8 bits that have scales beside them (`int8`) are expanded as they are read. Nothing is
executed: pickled weights are refused, an index may not lead out of its folder, and every damaged
file is answered with one line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch

from anyorder.core.errors import CheckpointError
from anyorder.model.int8 import SCALE_SUFFIX, expand

_INDEX = "model.safetensors.index.json"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TYPES = ("F64", "F32", "F16", "BF16")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; CheckpointError if the file is missing or is not one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}.") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(data).__name__}.")
    return data


class SafetensorsFolder:
    """`naming.TensorSource` over the *.safetensors of a folder; files are mapped, not read."""

    format: Literal["safetensors"] = "safetensors"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[Path, Any] = {}
        self._file_of: dict[str, Path] = {}
        index = folder / _INDEX
        if index.exists():
            self._read_index(index)
            return
        path = _only_file(folder)
        self._file_of = dict.fromkeys(self._open(path).keys(), path)

    def names(self) -> Iterable[str]:
        """Every tensor's name; scales belong to their tensors and are not listed."""
        return [
            name
            for name in self._file_of
            if not name.endswith(SCALE_SUFFIX) or not self._is_shrunk(name[: -len(SCALE_SUFFIX)])
        ]

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, without reading it."""
        return tuple(self._slice(name).get_shape())

    def read(self, name: str, out: torch.Tensor | None = None) -> torch.Tensor:
        """Its values as stored, mapped from the file, or expanded from 8 bits; `out` is not
        needed."""
        if self._is_shrunk(name):
            return self._expanded(name)
        kind = self._slice(name).get_dtype()
        if kind not in _TYPES:
            raise CheckpointError(
                f"tensor {name!r} in {self._file_of[name]} is of type {kind}; supported are "
                f"{', '.join(_TYPES)}. Convert the checkpoint to one of them."
            )
        return self.stored(name)

    def stored(self, name: str) -> torch.Tensor:
        """A tensor of any type as it lies in its file."""
        tensor: torch.Tensor = self._open(self._file_of[name]).get_tensor(name)
        return tensor

    def integers(self, name: str) -> torch.Tensor:
        """A tensor of whole numbers, int64."""
        tensor = self.stored(name)
        if tensor.is_floating_point() or tensor.is_complex():
            raise CheckpointError(
                f"tensor {name!r} in {self._file_of[name]} must hold whole numbers, but it is of "
                f"type {str(tensor.dtype).removeprefix('torch.')}."
            )
        return tensor.long()

    def _is_shrunk(self, name: str) -> bool:
        scaled = name in self._file_of and name + SCALE_SUFFIX in self._file_of
        return scaled and self._slice(name).get_dtype() == "I8"

    def _expanded(self, name: str) -> torch.Tensor:
        values, scales = self.stored(name), self.stored(name + SCALE_SUFFIX)
        rows, groups = values.shape[:-1], scales.shape[-1] if scales.dim() else 0
        if (
            not scales.is_floating_point()
            or scales.shape[:-1] != rows
            or not groups
            or values.shape[-1] % groups
        ):
            raise CheckpointError(
                f"tensor {name + SCALE_SUFFIX!r} in {self._file_of[name]} must hold scales for "
                f"{name!r}: floating-point numbers of shape {list(rows)} and a number of groups "
                f"that divides {values.shape[-1]}, not {list(scales.shape)}."
            )
        return expand(values, scales)

    def _slice(self, name: str) -> Any:
        path = self._file_of[name]
        try:
            return self._open(path).get_slice(name)
        except safetensors.SafetensorError:
            raise CheckpointError(
                f"{self._folder / _INDEX} promises tensor {name!r} in {path.name}, which lacks it."
            ) from None

    def _open(self, path: Path) -> Any:
        if path not in self._files:
            try:
                self._files[path] = safetensors.safe_open(path, framework="pt")
            except FileNotFoundError:
                raise CheckpointError(f"{path} is missing; fetch the checkpoint again.") from None
            except (safetensors.SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{path} is not a complete safetensors file ({error}); fetch it again."
                ) from None
        return self._files[path]

    def _read_index(self, index: Path) -> None:
        file_of = read_json(index).get("weight_map")
        if not isinstance(file_of, dict) or not file_of:
            raise CheckpointError(f'{index} has no "weight_map" of tensor names to files.')
        for name, file in file_of.items():
            # A plain name in this folder, so that a hostile index cannot open other files.
            if not isinstance(file, str) or Path(file).name != file or set(file) & {"\\", "\0"}:
                raise CheckpointError(
                    f"{index} puts tensor {name!r} into {file!r}; only files of the same folder "
                    "are allowed."
                )
            if Path(file).suffix != ".safetensors":
                raise CheckpointError(
                    f"{index} puts tensor {name!r} into {file!r}; only .safetensors are allowed."
                )
            self._file_of[name] = self._folder / file


def _only_file(folder: Path) -> Path:
    """The weights of a folder without an index: model.safetensors, or the only file there is."""
    paths = sorted(folder.glob("*.safetensors"))
    usual = folder / "model.safetensors"
    if usual in paths or len(paths) == 1:
        return usual if usual in paths else paths[0]
    if paths:
        raise CheckpointError(
            f"{folder} holds {len(paths)} .safetensors files and no {_INDEX} that says what is "
            "where; fetch the checkpoint again."
        )
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
    if pickled:
        raise CheckpointError(
            f"{folder} holds pickled weights ({pickled[0]}), which can run code when they are "
            "opened; only .safetensors and .gguf are loaded. Convert them first."
        )
    raise CheckpointError(f"{folder} holds no .safetensors file.")
