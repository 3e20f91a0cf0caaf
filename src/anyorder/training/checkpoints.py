"""Checkpoints that survive being killed: a folder a step, whole or absent.

A checkpoint holds weights, the optimiser's state and the running mean of the weights as
safetensors, and step, recipe and what watches for divergence as JSON. There is no state of random
generators to keep: whatever is random in a step is drawn from a generator seeded with the recipe's
seed and the step. A checkpoint is written beside its place, flushed to the disk and renamed; only
then is the one before it removed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from anyorder.core.errors import CheckpointError
from anyorder.model.safetensors_folder import read_json
from anyorder.model.saving import whole_folder

_FORMAT = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """Everything that later steps depend on."""

    step: int
    """Steps done."""
    recipe: Mapping[str, Any]
    """`Recipe.fields()`."""
    data: str
    """Fingerprint of the data."""
    watch: Mapping[str, float]
    """What watches for divergence."""
    weights: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, torch.Tensor]
    ema: Mapping[str, torch.Tensor]
    """Empty if the recipe asks for none."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `folder`/step-N and remove older checkpoints; UserError leaves them as they were."""
    place = folder / f"step-{checkpoint.step:08d}"
    older = _steps(folder)
    with whole_folder(place) as partial:
        for name in ("weights", "optimizer", "ema"):
            tensors = {key: value.contiguous() for key, value in getattr(checkpoint, name).items()}
            save_file(tensors, partial / f"{name}.safetensors")
        state = {
            "format": _FORMAT,
            "step": checkpoint.step,
            "recipe": dict(checkpoint.recipe),
            "data": checkpoint.data,
            "watch": dict(checkpoint.watch),
        }
        (partial / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    for path in older:
        if path != place:
            shutil.rmtree(path)


def latest(folder: Path) -> Path | None:
    """The checkpoint of the last step, if there is one."""
    steps = _steps(folder)
    return steps[-1] if steps else None


def read_checkpoint(place: Path) -> Checkpoint:
    """What `save_checkpoint` wrote. Raises CheckpointError if it is damaged."""
    state = read_json(place / "state.json")
    if state.get("format") != _FORMAT:
        raise CheckpointError(
            f"{place} is of checkpoint format {state.get('format')!r}; this version reads "
            f"{_FORMAT}. Train into a new folder."
        )
    return Checkpoint(
        step=state["step"],
        recipe=state["recipe"],
        data=state["data"],
        watch=state["watch"],
        weights=_tensors(place / "weights.safetensors"),
        optimizer=_tensors(place / "optimizer.safetensors"),
        ema=_tensors(place / "ema.safetensors"),
    )


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        # Cloned, because what is loaded may be a view of the file.
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except Exception as error:  # the library raises nothing more specific
        raise CheckpointError(
            f"{path} is damaged ({error}); delete the folder {path.parent} to start again."
        ) from None


def _steps(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{8,}", path.name))
