"""CALM in two runs: an autoencoder, then a model around it; folders, refusals, resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.runs import memory_data, small_recipe

from anyorder.core.errors import CheckpointError, InvalidRequest, UserError
from anyorder.model.calm import load_calm
from anyorder.model.calm_autoencoder import load_autoencoder
from anyorder.training.config import Recipe, build_recipe
from anyorder.training.trainer import Trainer

CODER = {"kind": "calm_autoencoder", "width": 16, "latent_width": 6, "patch_size": 3}
CALM = {"kind": "calm", "width": 16, "layers": 2, "heads": 2, "noise_width": 4, "head_layers": 1}


def recipe(output: Path, model: dict[str, Any], objective: str, **changes: Any) -> Recipe:
    """The small recipe with another network."""
    sections = small_recipe(output).fields()
    sections |= {"model": model, "objective": {"name": objective}, **changes}
    sections["data"] = {"sources": ["text.txt"], "length": 12}
    if model["kind"] == "calm_autoencoder":
        sections["data"]["vocabulary"] = 300
    return build_recipe({name: fields for name, fields in sections.items() if fields is not None})


@pytest.fixture
def coder(tmp_path: Path) -> Path:
    """A trained autoencoder's folder."""
    found = recipe(tmp_path / "coder", CODER, "calm_autoencoder")
    return Trainer(found, data=memory_data(tmp_path)).run()


def test_the_model_is_saved_with_its_autoencoder_as_it_was(tmp_path: Path, coder: Path) -> None:
    assert load_autoencoder(coder).sizes.fill_token_id == 256
    named = {**CALM, "autoencoder": str(coder)}
    run = Trainer(recipe(tmp_path / "calm", named, "calm_energy"), data=memory_data(tmp_path))
    folder = run.run()
    weights, before = (load_file(place / "model.safetensors") for place in (folder, coder))
    for name, values in before.items():
        assert torch.equal(weights[f"autoencoder.{name}"], values)
    network = load_calm(folder)
    assert network.config.context_length == 12 and network.noise_width == 4
    assert network.head.out.weight.any(), "trained"
    (checkpoint,) = sorted((tmp_path / "calm" / "checkpoints").iterdir())[-1:]
    kept = [name for file in checkpoint.glob("*.safetensors") for name in load_file(file)]
    assert kept and not any("autoencoder" in name for name in kept), "it is not trained"


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, coder: Path) -> None:
    named = {**CALM, "autoencoder": str(coder)}
    whole = recipe(tmp_path / "whole", named, "calm_energy")
    expected = load_file(Trainer(whole, data=memory_data(tmp_path)).run() / "model.safetensors")
    parts = recipe(tmp_path / "parts", named, "calm_energy")

    def stop(line: Any) -> None:
        if line.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(parts, data=memory_data(tmp_path), watch=stop).run()
    found = load_file(Trainer(parts, data=memory_data(tmp_path)).run() / "model.safetensors")
    assert all(torch.equal(found[name], values) for name, values in expected.items())


def test_passes_in_bfloat16(tmp_path: Path, coder: Path) -> None:
    named = {**CALM, "autoencoder": str(coder)}
    run = {**recipe(tmp_path / "calm", named, "calm_energy").fields()["run"], "dtype": "bfloat16"}
    found = recipe(tmp_path / "calm", named, "calm_energy", run={**run, "steps": 2})
    weights = load_file(Trainer(found, data=memory_data(tmp_path)).run() / "model.safetensors")
    kept = load_file(coder / "model.safetensors")
    assert all(
        values.dtype == torch.float32 and values.isfinite().all() for values in weights.values()
    )
    assert all(torch.equal(weights[f"autoencoder.{name}"], values) for name, values in kept.items())


def test_what_does_not_fit_together_is_refused(tmp_path: Path, coder: Path) -> None:
    def refuse(error: type[Exception], message: str, model: dict[str, Any], objective: str) -> None:
        with pytest.raises(error, match=message):
            Trainer(recipe(tmp_path / "x", model, objective), data=memory_data(tmp_path))

    named = {**CALM, "autoencoder": str(coder)}
    refuse(
        UserError, "is trained by the objective calm_energy, got next_token", named, "next_token"
    )
    refuse(UserError, "by the objective calm_autoencoder, got next_token", CODER, "next_token")
    refuse(UserError, "calm_energy trains networks of the kind calm, and", CODER, "calm_energy")
    refuse(InvalidRequest, "width must be an even multiple", {**named, "heads": 5}, "calm_energy")
    decoder = {
        **CALM,
        "autoencoder": str(
            Trainer(small_recipe(tmp_path / "decoder"), data=memory_data(tmp_path)).run()
        ),
    }
    refuse(
        CheckpointError, "of the kind 'llama'; CALM needs an autoencoder", decoder, "calm_energy"
    )
