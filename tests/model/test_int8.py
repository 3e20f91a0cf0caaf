"""Weights in 8 bits on the disk: the layout by its definition, and damaged files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from anyorder.core.errors import CheckpointError
from anyorder.model.backends.quantized import QuantizedLinear
from anyorder.model.int8 import expand, shrink
from anyorder.model.safetensors_folder import SafetensorsFolder


@pytest.mark.parametrize(("shape", "length"), [((5, 96), 32), ((3, 40), 40), ((2, 3, 64), 32)])
def test_a_weight_is_its_number_times_its_groups_scale(shape: tuple[int, ...], length: int) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.05
    weight[..., 0, :length] = 0  # a group without a scale
    values, scales = shrink(weight)
    assert values.dtype == torch.int8 and values.shape == weight.shape
    assert scales.dtype == torch.float16
    assert scales.shape == (*shape[:-1], shape[-1] // length)
    rows = weight.numpy().reshape(-1, length)
    expected_scales = (np.abs(rows).max(axis=1) / np.float32(127)).astype(np.float16)
    assert np.array_equal(scales.numpy().reshape(-1), expected_scales)
    expected = values.numpy().reshape(-1, length) * expected_scales.astype(np.float32)[:, None]
    again = expand(values, scales)
    assert again.dtype == torch.float32
    assert np.array_equal(again.numpy().reshape(-1, length), expected)
    # Half a unit, and what the largest weights lose by their scale being rounded.
    assert (np.abs(expected - rows) <= 0.56 * expected_scales.astype(np.float32)[:, None]).all()


def test_quantised_layers_hold_the_same_numbers() -> None:
    weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(1))
    stored = expand(*shrink(weight))
    assert torch.equal(QuantizedLinear(stored, None, 8).expanded(torch.float32), stored)


def folder_of(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> SafetensorsFolder:
    save_file(tensors, tmp_path / "model.safetensors")
    return SafetensorsFolder(tmp_path)


def test_a_folder_hides_the_scales_and_reads_weights(tmp_path: Path) -> None:
    weight, norm = torch.randn(4, 64), torch.randn(64)
    values, scales = shrink(weight)
    tensors = {"a.weight": values, "a.weight_scale": scales, "b": norm, "c_scale": norm.clone()}
    source = folder_of(tmp_path, tensors)
    assert sorted(source.names()) == ["a.weight", "b", "c_scale"]
    assert source.shape("a.weight") == (4, 64)
    assert torch.equal(source.read("a.weight"), expand(values, scales))
    assert torch.equal(source.read("b"), norm)


@pytest.mark.parametrize(
    "scales",
    [torch.ones(3, 2), torch.ones(4, 3), torch.ones(()), torch.ones(4, 2, dtype=torch.int64)],
)
def test_scales_that_do_not_fit_are_refused(tmp_path: Path, scales: torch.Tensor) -> None:
    values = torch.ones(4, 64, dtype=torch.int8)
    source = folder_of(tmp_path, {"a": values, "a_scale": scales})
    with pytest.raises(CheckpointError, match=r"'a_scale' .* must hold scales for 'a'.*\[4\]"):
        source.read("a")


def test_8_bits_without_scales_are_refused(tmp_path: Path) -> None:
    source = folder_of(tmp_path, {"a": torch.ones(4, 64, dtype=torch.int8)})
    with pytest.raises(CheckpointError, match="is of type I8; supported are"):
        source.read("a")
