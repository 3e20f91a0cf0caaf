"""A pass through a network's layers in one native call.

Between the products of a small model's layers lie some thirty operators, each of which costs more
to call than to compute. Here they run on the threads that compute the products. Families whose
layers have other parts (`LayerStack.supports` lists what there may be) run on torch.

Shape suffixes as in `core.batch`; W width of the residual stream.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence as Seq
from typing import Any

import torch
from torch import nn

from anyorder.core.batch import KeyValuePool, PackedBatch
from anyorder.model.backends.linear import MOST_ROWS, PLAIN, Linear
from anyorder.model.backends.native import (
    NAMES,
    QUANTIZED_LEVEL,
    level,
    library,
    plain_matrix,
)
from anyorder.model.backends.native.structures import (
    REGISTER,
    Group,
    Layer,
    Pass,
    Turn,
    describe,
)
from anyorder.model.backends.quantized import QuantizedLinear
from anyorder.model.config import ModelConfig, Rope
from anyorder.model.layers import RmsNorm
from anyorder.model.rotary import Rotation, rotation

_ACTIVATIONS = {"silu": 0, "gelu_tanh": 1}


class LayerStack:
    """The layers of one network, as the kernels see them."""

    def __init__(self, config: ModelConfig, layers: Seq[nn.Module]) -> None:
        self._config = config
        self._modules = [
            {name: _find(layer, name) for name in (*_MATRICES, *_NORMS)} for layer in layers
        ]
        self._weights = [
            (module._parameters, name)
            for layer in layers
            for module in layer.modules()
            for name, _ in module.named_parameters(recurse=False)
        ]
        """Where modules hold what they compute with, whoever puts something else there."""
        self._addresses: list[int] = []
        self._tables: dict[tuple[Rope, torch.dtype], Rotation] = {}
        """Cosines and sines of all positions that came up, and some more."""
        self._bound: weakref.WeakKeyDictionary[KeyValuePool, ctypes.Array[Any]] = (
            weakref.WeakKeyDictionary()
        )
        """`_layers` with the addresses of a pool's pages: engines that share a network may run it
        at the same time, each on its own pool."""
        self._layers = (Layer * len(layers))()
        known = [
            sum(len(_tensors(module)) for module in found.values() if module is not None)
            for found in self._modules
        ]
        self._supported = self.supports(config) and sum(known) == sum(
            len(_tensors(layer)) for layer in layers
        )
        """Nothing in the layers is unknown here, an adapter say."""
        self._supported &= all(type(held[name]) in PLAIN for held, name in self._weights)
        self._level = 1
        if any(isinstance(m, QuantizedLinear) for found in self._modules for m in found.values()):
            self._level = QUANTIZED_LEVEL

    def __deepcopy__(self, memo: object) -> None:
        """A copied network has weights of its own and makes its own stack of them."""

    @staticmethod
    def supports(config: ModelConfig) -> bool:
        """Are the layers of a kind that the kernels know?"""
        return (
            config.norm == "rms"
            and config.norm_placement == "before"
            and not config.parallel_residual
            and config.modulation is None
            and config.gated
            and config.activation in _ACTIVATIONS
            and config.qk_norm in ("none", "head")
            and config.clip_qkv is None
            and not config.alibi
            and config.encoder is None
            and config.relative_positions is None
            and config.attention_width in (None, config.width)
            and not config.head_width % REGISTER
            and not config.mlp_width % REGISTER
            and all(layer.experts is None for layer in config.layers)
            and all(layer.attention_norm and not layer.window_ahead for layer in config.layers)
            and all(layer.head_width is None is layer.num_kv_heads for layer in config.layers)
            and not any(layer.keys_are_values for layer in config.layers)
            and not config.value_norm
            and not config.layer_scale
            and all(layer.rope is None or not layer.rope.width % 2 for layer in config.layers)
        )

    def takes(self, x_NW: torch.Tensor, batch: PackedBatch) -> bool:
        """Can this pass run here? Depends on its shape alone, never on time or load."""
        return (
            self._supported
            and 0 < len(x_NW) <= MOST_ROWS.get(x_NW.dtype, 0)
            and batch.slots_N is not None
            and x_NW.device.type == "cpu"
            and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and level() >= self._level
        )

    def run(
        self,
        x_NW: torch.Tensor,
        batch: PackedBatch,
        pool: KeyValuePool,
        first: int,
        last: int,
        final_norm: RmsNorm | None = None,
    ) -> torch.Tensor:
        """The residual stream after layers `first` to before `last`, and after a norm."""
        self._refresh()
        x_NW = x_NW.clone()  # written in place
        assert batch.slots_N is not None, "takes() asks for slots"
        keep: list[torch.Tensor] = []
        """What the structures point to."""
        ropes = self._config.ropes
        layers = self._bound.get(pool)
        if layers is None:
            layers = self._bound[pool] = self._bind(pool)
        turns = (Turn * max(len(ropes), 1))()
        if ropes:
            num_positions = int(batch.positions_N.max()) + 1
            for turn, rope in zip(turns, ropes, strict=False):
                cosines, sines = self._table(rope, x_NW.dtype, num_positions)
                keep += [cosines, sines]
                turn.cosines, turn.sines = cosines.data_ptr(), sines.data_ptr()
                turn.width = cosines.shape[-1]
        groups = (Group * len(batch.groups))()
        for target, group in zip(groups, batch.groups, strict=True):
            describe(target, group, keep)
        config = self._config
        described = Pass(
            num_rows=len(x_NW),
            width=config.width,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_width=config.head_width,
            mlp_width=config.mlp_width,
            page_size=pool.pages(first)[0].shape[1],
            num_layers=last - first,
            num_groups=len(groups),
            num_threads=torch.get_num_threads(),
            activation=_ACTIVATIONS[config.activation],
            epsilon=config.norm_epsilon,
            residual=x_NW.data_ptr(),
            slots=batch.slots_N.data_ptr(),
            positions=batch.positions_N.data_ptr(),
            layers=ctypes.addressof(layers[first]),
            groups=ctypes.addressof(groups),
            rotations=ctypes.addressof(turns),
            final_norm=None if final_norm is None else final_norm.weight.data_ptr(),
        )
        kernels = library()
        assert kernels is not None, "takes() asks for the library"
        function = getattr(kernels, f"anyorder_layers_{NAMES[x_NW.dtype]}")
        function(ctypes.addressof(described))
        return x_NW

    def _bind(self, pool: KeyValuePool) -> ctypes.Array[Any]:
        layers = type(self._layers).from_buffer_copy(self._layers)
        for index, entry in enumerate(layers):
            keys, values = pool.pages(index)
            entry.keys, entry.values = keys.data_ptr(), values.data_ptr()
            scales = pool.scales(index)
            if scales is not None:
                entry.key_scales, entry.value_scales = (scale.data_ptr() for scale in scales)
        return layers

    def _table(self, rope: Rope, dtype: torch.dtype, num_positions: int) -> Rotation:
        """Cosines and sines [positions, 1, width] of at least so many positions."""
        known = self._tables.get((rope, dtype))
        if known is None or len(known[0]) < num_positions:
            positions = torch.arange(max(512, 2 * num_positions))
            cosines, sines = rotation(rope, positions, dtype)
            known = self._tables[rope, dtype] = cosines.contiguous(), sines.contiguous()
        return known

    def _refresh(self) -> None:
        """Where the weights lie now: whoever trains them may put others in their place."""
        tensors = (held[name] for held, name in self._weights)
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        if addresses == self._addresses:
            return
        self._addresses = addresses
        self._bound.clear()
        for index, (entry, found) in enumerate(zip(self._layers, self._modules, strict=True)):
            layer = self._config.layers[index]
            for name, field in _MATRICES.items():
                module = found[name]
                if isinstance(module, QuantizedLinear):
                    matrix = module.matrix()
                else:
                    assert isinstance(module, Linear) and module.weight.is_contiguous()
                    matrix = plain_matrix(module.weight, module.bias)
                setattr(entry, field, matrix)
            for name, field in _NORMS.items():
                norm = found[name]
                address = norm.weight.data_ptr() if isinstance(norm, RmsNorm) else None
                setattr(entry, field, address)
            entry.rope = -1 if layer.rope is None else self._config.ropes.index(layer.rope)
            entry.window = layer.window or 0
            entry.scale = layer.attention_scale


_MATRICES = {
    "attention.qkv": "qkv",
    "attention.out": "out",
    "mlp.gate_up": "gate_up",
    "mlp.down": "down",
}
_NORMS = {
    "attention_norm": "attention_norm",
    "attention.query_norm": "query_norm",
    "attention.key_norm": "key_norm",
    "mlp_norm": "mlp_norm",
}
"""Modules of `model.transformer.Layer`, and the fields of `Layer` in layers.h."""


def _find(layer: nn.Module, name: str) -> nn.Module | None:
    found: Any = layer
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, nn.Module) else None


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]
