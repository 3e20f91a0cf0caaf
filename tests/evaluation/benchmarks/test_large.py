"""A network of random weights: the file, what is read of it, and what decodes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anyorder.core.request import Request
from anyorder.engine.engine import Engine
from anyorder.evaluation.benchmarks.large import LARGE, Shape, made
from anyorder.model.backends import native
from anyorder.model.backends.quantized import QuantizedEmbedding, QuantizedLinear
from anyorder.model.transformer import Transformer

SMALL = Shape(
    name="small",
    width=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    mlp_width=256,
    vocabulary=320,
)
needs_kernels = pytest.mark.skipif(
    native.level() < native.QUANTIZED_LEVEL, reason="weights are read as a file has them"
)


@needs_kernels
@pytest.mark.parametrize(("quantize", "format"), [("int8", "8-bit"), ("int4", "4-bit")])
def test_it_decodes_and_reads_so_many_bytes(tmp_path: Path, quantize: str, format: str) -> None:
    engine = Engine(made(tmp_path, SMALL, lambda _: None), quantize=quantize)
    network = engine.roles["target"].network
    assert isinstance(network, Transformer) and isinstance(network.embedding, QuantizedEmbedding)
    packed = {id(m): m for m in network.modules() if isinstance(m, QuantizedLinear)}
    assert sum(m.packed.numel() for m in packed.values()) == SMALL.weight_bytes(format)
    assert not any(p.numel() > SMALL.width for p in network.parameters())  # norms alone
    weights = network.embedding.weight
    assert weights.std() == pytest.approx(0.02, rel=0.1) and abs(weights.mean()) < 0.001
    assert torch.isfinite(weights).all()
    request = Request(prompt=[5, 6, 7, 300], max_new_tokens=6, ignore_end=True)
    assert len(engine.generate([request])[0].tokens) == 6


def test_a_file_is_written_once(tmp_path: Path) -> None:
    told: list[str] = []
    path = made(tmp_path / "models", SMALL, told.append)
    size = path.stat().st_size
    assert path == made(tmp_path / "models", SMALL, told.append)
    assert [file.name for file in path.parent.iterdir()] == [path.name] and len(told) == 1
    assert size > SMALL.weight_bytes("4-bit")


def test_the_published_shape() -> None:
    """1,235,814,400 parameters, 67,584 of them in norms."""
    inner = sum(outputs * width for _, outputs, width in LARGE.matrices())
    assert inner + LARGE.vocabulary * LARGE.width == 1_235_814_400 - 33 * 2048
    assert LARGE.weight_bytes("8-bit") == (1_235_814_400 - 33 * 2048) * 34 // 32
