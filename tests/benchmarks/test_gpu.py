"""The measurements for GPUs run through on a CPU, with a tiny shape; their figures mean nothing."""

from __future__ import annotations

import sys

import pytest
import torch
from benchmarks.gpu import Case

from benchmarks import gpu

TINY = Case(
    name="tiny",
    width=64,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    mlp_width=96,
    vocabulary=99,
    prompt=8,
    new=8,
    streams=3,
    places=16,
    block=4,
)


def test_every_figure_is_taken() -> None:
    found = gpu.measure(TINY, TINY, torch.device("cpu"), torch.float32, rounds=2)
    assert found["decode"]["agreeing_tokens"] == TINY.new
    assert set(found["decode"]["tokens_per_second"]) == {"anyorder", "transformers"}
    assert found["decode"]["share_of_limit"] > 0
    assert found["streams"]["tokens_per_second"]["anyorder"][0] > 0
    assert set(found["diffusion"]["seconds_per_pass"]) == set(found["diffusion"]["num_passes"])
    assert found["diffusion"]["num_passes"]["block_diffusion"] > TINY.places // TINY.block
    assert found["attention"]["microseconds"]["torch"][0] > 0


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 2
    assert capsys.readouterr().err == (
        "torch finds no CUDA device; run this on a machine with a GPU.\n"
    )
