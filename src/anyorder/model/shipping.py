"""A trained model made small enough to travel with the package, and found there by name.

`pack` writes a folder that holds all there is to know of a model: its weights in 8 bits
(`model.int8`), config.json, the tokenizer, the recipe that it was trained by, what was measured on
the way, and about.json (what it is, its licence, how many weights). It takes any folder of
safetensors: decoders, encoder-decoders, drafters, CALM, classifiers. Whatever lies in `SHIPPED` is
a named model (`catalog`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyorder.core.errors import UserError

if TYPE_CHECKING:
    import torch

SHIPPED = Path(__file__).resolve().parent.parent / "shipped"
ABOUT = "about.json"


def shipped_models() -> dict[str, Path]:
    """Names and folders of the models that came with the package."""
    return {file.parent.name: file.parent for file in sorted(SHIPPED.glob(f"*/{ABOUT}"))}


def pack(run: Path, folder: Path, *, description: str, licence: str) -> int:
    """Write a small copy of a run's model, or of a model folder; returns its bytes."""
    from safetensors.torch import save_file

    from anyorder.model.int8 import METHOD
    from anyorder.model.safetensors_folder import SafetensorsFolder, read_json
    from anyorder.model.saving import TOKENIZER_FILES, whole_folder

    model = run / "model" if (run / "model").is_dir() else run
    if not model.is_dir():
        raise UserError(f"there is no folder {str(run)!r}; name a run, or a folder with a model.")
    if folder.exists():
        raise UserError(f"{folder} exists already; name a new folder, or delete it first.")
    config = read_json(model / "config.json")
    if "quantization_config" in config:
        raise UserError(f"{model} is quantised already; pack the model that it was made from.")
    source = SafetensorsFolder(model)
    tensors = {name: source.stored(name) for name in source.names()}
    about = {
        "description": description,
        "licence": licence,
        "num_parameters": sum(t.numel() for t in tensors.values() if t.is_floating_point()),
    }
    with whole_folder(folder) as partial:
        weights = partial / "model.safetensors"
        save_file(_shrunk(tensors), weights, metadata={"format": "pt"})
        weights.chmod(0o644)  # a package is installed for all users
        _write(partial / "config.json", {**config, "quantization_config": METHOD})
        _write(partial / ABOUT, about)
        for name in TOKENIZER_FILES:
            if not (model / name).exists():
                continue
            if name.endswith(".json"):  # trained ones are written to be read
                text = json.dumps(
                    read_json(model / name), ensure_ascii=False, separators=(",", ":")
                )
                (partial / name).write_text(text + "\n", encoding="utf-8")
            else:
                shutil.copyfile(model / name, partial / name)
        _add_history(run, partial)
    return sum(path.stat().st_size for path in folder.iterdir())


def _shrunk(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Matrices in 8 bits; single rows and whole numbers as they are."""
    from anyorder.model.int8 import SCALE_SUFFIX, shrink

    small: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() > tensor.shape[-1]:
            small[name], small[name + SCALE_SUFFIX] = shrink(tensor)
        else:
            small[name] = tensor
    return small


def _add_history(run: Path, partial: Path) -> None:
    """How the model came about, if a run's folder tells: its recipe with all defaults, and the
    steps at which it was validated."""
    from anyorder.model.safetensors_folder import read_json

    states = sorted(run.glob("checkpoints/*/state.json"))
    if states:
        recipe = read_json(states[-1])["recipe"]
        recipe["run"].pop("output", None)  # where it was, on the machine that trained it
        _write(partial / "recipe.json", recipe)
    metrics = run / "metrics.jsonl"
    if metrics.exists():
        lines = metrics.read_text("utf-8").splitlines(keepends=True)
        kept = _validated(lines)
        (partial / "metrics.jsonl").write_text("".join(kept), encoding="utf-8")


def _validated(lines: list[str]) -> Iterable[str]:
    return (line for line in lines if "validation_loss" in json.loads(line))


def _write(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
