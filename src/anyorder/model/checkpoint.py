"""Checkpoints as they lie on disk: a folder of safetensors, or a GGUF file.

Opening reads the configuration and the list of tensors, no weights; `loading.load_network` reads
those.
"""

from __future__ import annotations

from pathlib import Path

from anyorder.core.errors import CheckpointError
from anyorder.model.architecture import for_model_type
from anyorder.model.config import ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import TensorSource
from anyorder.model.safetensors_folder import SafetensorsFolder, read_json


def open_folder(folder: Path) -> tuple[ModelConfig, TensorSource]:
    """Configuration and tensors of a folder as `save_pretrained` or the hub lays it out.

    `generation_config.json` contributes its end tokens. Raises CheckpointError, and UnknownName
    for a `model_type` that no architecture reads.
    """
    data = read_json(folder / "config.json")
    fields = Fields(data, str(folder / "config.json"))
    if fields.has("quantization_config"):
        raise CheckpointError(
            f"{folder} holds quantised safetensors, which are not supported; use its original "
            "weights or a .gguf file."
        )
    generation = folder / "generation_config.json"
    if generation.exists():
        ends = Fields(read_json(generation), str(generation)).integers("eos_token_id")
        data["eos_token_id"] = sorted(ends | fields.integers("eos_token_id"))
    config = for_model_type(fields.text("model_type")).config(fields)
    return config, SafetensorsFolder(folder)
