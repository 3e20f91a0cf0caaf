"""Pages of keys and values in 8 bits: a quarter of float32's memory, half of bfloat16's.

Every head of every token has a scale of its own, its largest size / 127, so what is stored of a
token depends on nothing but that token. Whoever reads it, in the pass that computes it too, reads
the rounded numbers: what is run in one piece, in chunks or again after preemption is the same. It
changes the model's distribution a little; `anyorder eval --cache-dtype int8` tells how much.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch

from anyorder.cache.pool import Pool, put


class Int8Pool(Pool):
    """[num_pages + 1, page_size, G, D] keys and values for every layer, and their scales."""

    def _reserve(
        self, shapes: Seq[tuple[int, ...]], dtype: torch.dtype
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        heads = [shape[:1] for shape in shapes]
        self.key_scales, self.value_scales = super()._reserve(heads, torch.float32)
        return super()._reserve(shapes, torch.int8)

    @staticmethod
    def bytes_per_token(shapes: list[tuple[int, int]], dtype: torch.dtype) -> int:
        """What a position of all layers takes."""
        return sum(2 * heads * (width + torch.float32.itemsize) for heads, width in shapes)

    def tensors(self) -> list[torch.Tensor]:
        """All that a page has a part of."""
        return [*super().tensors(), *self.key_scales, *self.value_scales]

    def write(
        self, layer: int, slots_N: torch.Tensor, keys_NGD: torch.Tensor, values_NGD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new tokens' keys and values of one layer; returns them as they will be read."""
        rounded = []
        for stored, scales, new_NGD in (
            (self.keys[layer], self.key_scales[layer], keys_NGD),
            (self.values[layer], self.value_scales[layer], values_NGD),
        ):
            units_NGD, scales_NG = quantize(new_NGD)
            put(stored, slots_N, units_NGD)
            put(scales, slots_N, scales_NG)
            rounded.append(dequantize(units_NGD, scales_NG, self.dtype))
        return rounded[0], rounded[1]

    def read(self, layer: int, pages_RP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [R, K, G, D] of one layer, K = P * page_size."""
        keys, values = (
            dequantize(
                self.gather(stored, pages_RP), self.gather(scales, pages_RP), dtype=self.dtype
            )
            for stored, scales in (
                (self.keys[layer], self.key_scales[layer]),
                (self.values[layer], self.value_scales[layer]),
            )
        )
        return keys, values

    def scales(self, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """What keys and values are multiplied by, [num_pages + 1, page_size, G]."""
        return self.key_scales[layer], self.value_scales[layer]


def quantize(x_NGD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 [N, G, D], to nearest, and what to multiply them by, float32 [N, G]."""
    x_NGD = x_NGD.float()
    scales_NG = x_NGD.abs().amax(-1) / 127.0
    divisors_NG = torch.where(scales_NG == 0, 1.0, scales_NG)
    return (x_NGD / divisors_NG[..., None]).round_().to(torch.int8), scales_NG


def dequantize(
    units_NGD: torch.Tensor, scales_NG: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """The numbers that int8 values stand for."""
    return (units_NGD.float() * scales_NG[..., None]).to(dtype)
