"""A checkpoint's configuration file, read field by field with types checked.

Everything in it comes from strangers, so a missing field, a text where a number belongs or a size
beyond all reason is answered with a CheckpointError that names the field. Remote code that the file
may point to (`auto_map`) is ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from anyorder.core.errors import CheckpointError
from anyorder.core.method import TextRules
from anyorder.model.config import (
    Activation,
    DynamicScaling,
    Experts,
    FrequencyDivisors,
    LayerConfig,
    LinearScaling,
    Llama3Scaling,
    NtkScaling,
    Rope,
    RopeScaling,
    YarnScaling,
)

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_LARGEST = 2**24
_MOST_LAYERS = 1000
_SCALINGS = ("linear", "ntk", "dynamic", "yarn", "llama3")


class Fields:
    """Typed access to a JSON object. A field that is null counts as absent."""

    def __init__(self, data: Mapping[str, Any], origin: str) -> None:
        self._data = data
        self.origin = origin
        """What the object is called in messages: a file, a part of it."""

    @property
    def num_layers(self) -> int:
        """The number of layers, under one of its usual names."""
        return self.layer_count("n_layer" if self.has("n_layer") else "num_hidden_layers")

    def layer_count(self, name: str, default: int | None = None) -> int:
        """A number of layers, with a bound against absurd configurations."""
        num_layers = self.integer(name, default)
        if num_layers > _MOST_LAYERS:
            raise self._wrong(name, num_layers, f"at most {_MOST_LAYERS}")
        return num_layers

    def head_width(self, width: int, num_heads: int) -> int:
        """Each head's share of the width, where no field says otherwise."""
        if num_heads > width:
            raise CheckpointError(
                f"{self.origin} has {num_heads} heads, too many for a width of {width}."
            )
        return width // num_heads

    def has(self, name: str) -> bool:
        """Is the field there, and not null?"""
        return self._data.get(name) is not None

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number from 0 to 2^24, a bound against absurd sizes."""
        value = self._value(name, default)
        if type(value) is not int or not 0 <= value <= _LARGEST:
            raise self._wrong(name, value, "a whole number from 0 to 2^24")
        return value

    def size(self, name: str, default: int | None = None) -> int:
        """A whole number from 1 to 2^24."""
        value = self.integer(name, default)
        if value < 1:
            raise self._wrong(name, value, "at least 1")
        return value

    def number(self, name: str, default: float | None = None, *, above: float = -math.inf) -> float:
        """A finite number greater than `above`."""
        value = self._value(name, default)
        if type(value) not in (int, float) or not math.isfinite(value) or value <= above:
            allowed = "a number" if above == -math.inf else f"a number above {above:g}"
            raise self._wrong(name, value, allowed)
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """true or false."""
        value = self._value(name, default)
        if type(value) is not bool:
            raise self._wrong(name, value, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a text")
        return value

    def texts(self, name: str, length: int) -> tuple[str, ...]:
        """A list of `length` strings."""
        value = self._value(name, None)
        if (
            not isinstance(value, list)
            or len(value) != length
            or not all(isinstance(item, str) for item in value)
        ):
            raise self._wrong(name, value, f"a list of {length} texts")
        return tuple(value)

    def integers(self, name: str) -> frozenset[int]:
        """A whole number or a list of them; empty where the field is absent."""
        value = self._data.get(name)
        values = [] if value is None else value if isinstance(value, list) else [value]
        if not all(type(item) is int and 0 <= item <= _LARGEST for item in values):
            raise self._wrong(name, value, "a whole number or a list of them")
        return frozenset(values)

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of finite numbers."""
        value = self._value(name, None)
        if not isinstance(value, list | tuple) or not all(
            type(item) in (int, float) and math.isfinite(item) for item in value
        ):
            raise self._wrong(name, value, "a list of numbers")
        return tuple(float(item) for item in value)

    def inside(self, name: str) -> Fields:
        """A nested object; empty where the field is absent."""
        value = self._data.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise self._wrong(name, value, "an object")
        return Fields(value or {}, f"{name!r} of {self.origin}")

    def activation(self, name: str, default: str | None = None) -> Activation:
        """One of the activations that the stack has."""
        value = self.text(name, default)
        if value not in _ACTIVATIONS:
            raise self._wrong(name, value, f"one of {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[value]

    def with_experts(
        self, layers: tuple[LayerConfig, ...], experts: Experts
    ) -> tuple[LayerConfig, ...]:
        """Experts in every `decoder_sparse_step`-th layer but those in `mlp_only_layers`."""
        step = max(self.integer("decoder_sparse_step", 1), 1)
        dense = self.integers("mlp_only_layers")
        return tuple(
            replace(layer, experts=None if index in dense or (index + 1) % step else experts)
            for index, layer in enumerate(layers)
        )

    def mask_token(self, vocabulary_size: int, published: int) -> int:
        """Token of a masked place: `mask_token_id`, or what the family's published checkpoints mean
        where they do not say it."""
        token = self.integer("mask_token_id", published)
        if token >= vocabulary_size:
            raise self._wrong("mask_token_id", token, f"below {vocabulary_size}")
        return token

    def require(self, name: str, only: object, default: object) -> None:
        """CheckpointError unless the field, or its default, is `only`."""
        if self._value(name, default) != only:
            raise self.refuse(name, f"only {only!r} is supported.")

    @property
    def text_rules(self) -> TextRules:
        """What is forced or banned in every text; of an encoder-decoder, what texts begin with."""
        first = "forced_bos_token_id"
        banned = self._data.get("bad_words_ids") or []
        if not isinstance(banned, list) or not all(
            isinstance(run, list) and run and all(type(token) is int for token in run)
            for run in banned
        ):
            raise self._wrong("bad_words_ids", banned, "a list of lists of token ids")
        return TextRules(
            start_tokens=(self.integer("decoder_start_token_id"),),
            first_token=self.integer(first) if self.has(first) else None,
            last_tokens=self.integers("forced_eos_token_id"),
            banned=tuple(tuple(run) for run in banned),
        )

    def value(self, name: str) -> object:
        """The field as it is; None where it is absent."""
        return self._data.get(name)

    def refuse(self, name: str, why: str) -> CheckpointError:
        """An error about a field whose value the stack cannot honour."""
        return CheckpointError(f"{name} = {self._data.get(name)!r} in {self.origin}: {why}")

    def _value(self, name: str, default: Any) -> Any:
        value = self._data.get(name)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{self.origin} lacks the field {name!r}.")
        return value

    def _wrong(self, name: str, value: object, allowed: str) -> CheckpointError:
        shown = repr(value)
        shown = shown if len(shown) < 80 else shown[:77] + "..."
        return CheckpointError(f"{name!r} in {self.origin} must be {allowed}, got {shown}.")


# -------------------------------------------------------------------------------- sliding windows
def read_windows(fields: Fields, num_layers: int) -> tuple[int | None, ...]:
    """Each layer's sliding window: by `layer_types`, else from layer `max_window_layers` on, else
    the same for all."""
    window = fields.integer("sliding_window", 0)
    if not window or not fields.flag("use_sliding_window", True):
        return (None,) * num_layers
    if fields.has("layer_types"):
        kinds = fields.texts("layer_types", num_layers)
        if not set(kinds) <= {"full_attention", "sliding_attention"}:
            raise fields.refuse("layer_types", "only full and sliding attention are supported.")
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    first = fields.integer("max_window_layers", 0)
    return tuple(window if layer >= first else None for layer in range(num_layers))


def read_rope(
    fields: Fields,
    head_width: int,
    *,
    base: float = 10_000.0,
    share: float = 1.0,
    parameters: Fields | None = None,
) -> Rope:
    """The rotary embedding of a configuration, in its old form (`rope_theta`, `rope_scaling`) or
    its new one (`rope_parameters`, or `parameters` where they are elsewhere). `base` and the
    rotated `share` of each head are the family's defaults."""
    if parameters is None:
        name = "rope_parameters" if fields.has("rope_parameters") else "rope_scaling"
        parameters = fields.inside(name)
    base = parameters.number("rope_theta", fields.number("rope_theta", base), above=1)
    share = parameters.number(
        "partial_rotary_factor", fields.number("partial_rotary_factor", share)
    )
    width = int(head_width * share)
    if width < 2 or width % 2 or width > head_width:
        raise CheckpointError(
            f"{fields.origin} asks to rotate {width} of {head_width} dimensions per head; it must "
            "be an even number of them."
        )
    scaling = _read_scaling(fields, parameters)
    if isinstance(scaling, FrequencyDivisors) and len(scaling.divisors) != width // 2:
        raise CheckpointError(
            f"{fields.origin} has {len(scaling.divisors)} rotary divisors for {width} dimensions; "
            f"there must be {width // 2}."
        )
    return Rope(width=width, base=base, scaling=scaling)


def _read_scaling(fields: Fields, parameters: Fields) -> RopeScaling | None:
    kind = parameters.text("rope_type", parameters.text("type", "default"))
    if kind == "default":
        return None
    if kind == "divisors":
        return FrequencyDivisors(divisors=parameters.numbers("divisors"))
    if kind not in _SCALINGS:
        raise CheckpointError(
            f"rope scaling {kind!r} in {fields.origin} is not supported; supported are default, "
            f"{', '.join(_SCALINGS)}."
        )
    context = fields.size("max_position_embeddings")
    original = fields.size(
        "original_max_position_embeddings",
        parameters.size("original_max_position_embeddings", context),
    )
    if kind == "yarn":
        return _read_yarn(parameters, context, original)
    factor = parameters.number("factor", above=0)
    if kind == "linear":
        return LinearScaling(factor=factor)
    if kind == "ntk":
        return NtkScaling(factor=factor)
    if kind == "dynamic":
        return DynamicScaling(factor=factor, original_length=context)
    return Llama3Scaling(
        factor=factor,
        low_frequency_factor=parameters.number("low_freq_factor"),
        high_frequency_factor=parameters.number("high_freq_factor"),
        original_length=original,
    )


def _read_yarn(parameters: Fields, context: int, original: int) -> YarnScaling:
    factor = parameters.number("factor", context / original, above=0)

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    inferred = magnitude(1.0)
    weight, all_weight = parameters.number("mscale", 0.0), parameters.number("mscale_all_dim", 0.0)
    if weight and all_weight:
        inferred = magnitude(weight) / magnitude(all_weight)
    return YarnScaling(
        factor=factor,
        original_length=original,
        beta_fast=parameters.number("beta_fast", 32.0, above=0),
        beta_slow=parameters.number("beta_slow", 1.0, above=0),
        magnitude=parameters.number("attention_factor", inferred),
        truncate=parameters.flag("truncate", True),
    )
