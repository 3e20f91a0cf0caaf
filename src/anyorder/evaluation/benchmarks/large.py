"""A network of a published shape and of random weights, in a GGUF file: how near decoding comes to
what memory gives does not depend on what the weights are, and a small model never shows it.

Linear layers are in Q4_1 and the embedding, which is the head too, in Q8_0, as in the default
model's file: loading lays them out as they are, and they are never expanded. The tokenizer has
names for the tokens and knows no text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyorder.evaluation.benchmarks.sides import BYTES_PER_WEIGHT

_GROUP = 32
_SPREAD = 0.02
"""Standard deviation of the weights."""
_CONTEXT = 2048


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of a decoder like Llama."""

    name: str
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    mlp_width: int
    vocabulary: int

    def matrices(self) -> Iterator[tuple[str, int, int]]:
        """Names in a GGUF file, outputs and widths of the linear layers, the head left out."""
        keys = self.width // self.num_heads * self.num_kv_heads
        for layer in range(self.num_layers):
            for name, outputs, width in (
                ("attn_q", self.width, self.width),
                ("attn_k", keys, self.width),
                ("attn_v", keys, self.width),
                ("attn_output", self.width, self.width),
                ("ffn_gate", self.mlp_width, self.width),
                ("ffn_up", self.mlp_width, self.width),
                ("ffn_down", self.width, self.mlp_width),
            ):
                yield f"blk.{layer}.{name}.weight", outputs, width

    def weight_bytes(self, format: str) -> int:
        """Of all weights that a token reads; the head's have 8 bits."""
        inner = sum(outputs * width for _, outputs, width in self.matrices())
        head = self.vocabulary * self.width
        return round(inner * BYTES_PER_WEIGHT[format] + head * BYTES_PER_WEIGHT["8-bit"])


LARGE = Shape(
    name="llama-3.2-1b",
    width=2048,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    mlp_width=8192,
    vocabulary=128256,
)


def made(folder: Path, shape: Shape, tell: Callable[[str], None]) -> Path:
    """The file, written if it is not there yet."""
    path = folder / f"{shape.name}-random.gguf"
    if not path.exists():
        tell(f"writing {path.name} with random weights")
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        write(unfinished, shape)
        unfinished.rename(path)
    return path


def write(path: Path, shape: Shape) -> None:
    """One tensor after the other: the largest is what memory holds."""
    import gguf
    import numpy

    kinds = gguf.GGMLQuantizationType
    tensors = [("token_embd.weight", shape.vocabulary, shape.width, kinds.Q8_0)]
    tensors += [(*matrix, kinds.Q4_1) for matrix in shape.matrices()]
    norms = ["output_norm.weight"]
    for layer in range(shape.num_layers):
        norms += [f"blk.{layer}.{name}_norm.weight" for name in ("attn", "ffn")]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.mlp_width)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"<{number}>" for number in range(shape.vocabulary)])
    for name, outputs, width, kind in tensors:
        size = gguf.GGML_QUANT_SIZES[kind][1]
        lines = (outputs, width // _GROUP * size)
        writer.add_tensor_info(name, lines, numpy.dtype("uint8"), lines[0] * lines[1], kind)
    for name in norms:
        writer.add_tensor_info(name, (shape.width,), numpy.dtype("float32"), 4 * shape.width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = numpy.random.default_rng(0)
    for _, outputs, width, kind in tensors:
        draw = _q4_1 if kind == kinds.Q4_1 else _q8_0
        writer.write_tensor_data(draw(rng, outputs * width // _GROUP).reshape(outputs, -1))
    for _ in norms:
        writer.write_tensor_data(numpy.ones(shape.width, dtype="float32"))
    writer.close()


def _q4_1(rng: Any, num_groups: int) -> Any:
    """Blocks of a scale, a lowest value and 32 numbers of 0 to 15, whose deviation is 4.61."""
    blocks = rng.integers(0, 256, (num_groups, 20), dtype="uint8")
    scales = rng.uniform(0.5, 1.5, num_groups) * _SPREAD / 4.61
    blocks[:, :2] = scales.astype("<f2").view("uint8").reshape(-1, 2)
    blocks[:, 2:4] = (-7.5 * scales).astype("<f2").view("uint8").reshape(-1, 2)
    return blocks


def _q8_0(rng: Any, num_groups: int) -> Any:
    """Blocks of a scale and 32 signed bytes, whose deviation is 73.9."""
    blocks = rng.integers(0, 256, (num_groups, 34), dtype="uint8")
    scales = rng.uniform(0.5, 1.5, num_groups) * _SPREAD / 73.9
    blocks[:, :2] = scales.astype("<f2").view("uint8").reshape(-1, 2)
    return blocks
