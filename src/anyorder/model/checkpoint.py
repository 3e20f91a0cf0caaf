"""Checkpoints as they lie on disk: a folder of safetensors, or a GGUF file.

Opening reads the configuration and the list of tensors, no weights; `loading.load_network` reads
those.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from anyorder.core.errors import CheckpointError
from anyorder.model.architecture import for_fields, for_gguf_type
from anyorder.model.config import ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.int8 import METHOD
from anyorder.model.naming import TensorSource
from anyorder.model.safetensors_folder import SafetensorsFolder, read_json

if TYPE_CHECKING:
    import torch


_FORCED = ("forced_bos_token_id", "forced_eos_token_id", "bad_words_ids")


class _Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def type(self) -> str: ...


class OpenGguf(Protocol):
    """What is needed of `gguf.GGUFFile`."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Values by full key."""

    @property
    def tensors(self) -> Mapping[str, _Shaped]:
        """By name, shapes in torch's order."""

    def read(self, name: str, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """float32, or of `out`'s type."""

    def stored(self, name: str) -> torch.Tensor:
        """Rows of bytes."""

    def release(self, name: str) -> None:
        """What was read is needed no more."""


class GgufTensors:
    """`naming.TensorSource` over an open GGUF file."""

    format: Literal["gguf"] = "gguf"

    def __init__(self, file: OpenGguf) -> None:
        self._file = file

    def names(self) -> Iterable[str]:
        """Every tensor's name."""
        return self._file.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape in torch's order."""
        return self._file.tensors[name].shape

    def read(self, name: str, out: torch.Tensor | None = None) -> torch.Tensor:
        """Its values, dequantised to float32 or to the type of `out`."""
        return self._file.read(name, out=out)

    def file_format(self, name: str) -> str:
        """What GGUF calls the way in which it is stored."""
        return self._file.tensors[name].type

    def stored(self, name: str) -> torch.Tensor:
        """Its rows as they lie in the file, uint8 [rows, bytes]; a view."""
        return self._file.stored(name)

    def release(self, name: str) -> None:
        """Its rows are needed no more."""
        self._file.release(name)


def open_folder(folder: Path) -> tuple[ModelConfig, TensorSource]:
    """Configuration and tensors of a folder as `save_pretrained` or the hub lays it out.

    `generation_config.json` contributes its end tokens, and what every text of an encoder-decoder
    begins with or must not hold. Raises CheckpointError, and UnknownName for a `model_type` that no
    architecture reads.
    """
    data = read_json(folder / "config.json")
    fields = Fields(data, str(folder / "config.json"))
    quantization = data.get("quantization_config")
    if quantization is not None and quantization != METHOD:
        raise CheckpointError(
            f"{folder} holds quantised safetensors, which are not supported; use its original "
            "weights or a .gguf file."
        )
    generation = folder / "generation_config.json"
    if generation.exists():
        rules = read_json(generation)
        ends = Fields(rules, str(generation)).integers("eos_token_id")
        data["eos_token_id"] = sorted(ends | fields.integers("eos_token_id"))
        # The file decides where it exists; config.json still says what it leaves open.
        start = rules.get("decoder_start_token_id", data.get("decoder_start_token_id"))
        data["decoder_start_token_id"] = rules.get("bos_token_id") if start is None else start
        data.update({name: rules.get(name) for name in _FORCED})
    config = for_fields(fields).config(fields)
    return config, SafetensorsFolder(folder)


def open_gguf(file: OpenGguf) -> tuple[ModelConfig, TensorSource]:
    """Configuration and tensors of a GGUF file.

    Raises CheckpointError, and UnknownName for a `general.architecture` that none of ours reads.
    """
    source = GgufTensors(file)
    kind = Fields(file.metadata, "the GGUF metadata").text("general.architecture")
    family = for_gguf_type(kind)
    fields = Fields(
        family.gguf_fields(file.metadata, source), f"the metadata of a {kind} GGUF file"
    )
    return family.config(fields), source
