"""What is compared: an engine with one form of the model and the settings that suit it best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

TOLERANCES = {"float32": 0.01, "16-bit": 0.25, "8-bit": 0.5, "4-bit": 0.5}
"""By format of the weights: how much likelier, in nats, the reference may find its own greedy token
than a side's before the two differ. Below that it is a near-tie, which rounding decides."""
FORMATS = tuple(TOLERANCES)
BYTES_PER_WEIGHT = {"float32": 4.0, "16-bit": 2.0, "8-bit": 34 / 32, "4-bit": 20 / 32}
"""A scale for each 32 weights in 8 bits; scale and offset in 4."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One engine in one setting."""

    name: str
    engine: str
    """As the worker calls it; other than anyorder, a peer."""
    format: str
    """Of the weights: sides of one format compete."""
    kind: str
    """What the engine calls it."""
    weights: str = ""
    """The form of the model that it reads; empty: as it comes."""
    looks_up: bool = True
    """Has the engine exact speculation out of the text so far?"""
    threads: int | None = None
    """Where another number than the run's is faster."""
    environment: Mapping[str, str] = field(default_factory=dict)


SIDES = (
    Side(
        name="anyorder float32",
        engine="anyorder",
        format="float32",
        kind="float32",
    ),
    Side(
        name="transformers float32",
        engine="transformers",
        format="float32",
        kind="float32",
        weights="safetensors-float32",
    ),
    Side(
        name="CTranslate2 float32",
        engine="ctranslate2",
        format="float32",
        kind="float32",
        weights="ctranslate2-float32",
        looks_up=False,
        environment={"CT2_USE_MKL": "0"},
    ),
    Side(
        name="anyorder bfloat16",
        engine="anyorder",
        format="16-bit",
        kind="bfloat16",
    ),
    Side(
        name="transformers bfloat16",
        engine="transformers",
        format="16-bit",
        kind="bfloat16",
        weights="safetensors-bfloat16",
    ),
    Side(
        name="llama.cpp BF16",
        engine="llama.cpp",
        format="16-bit",
        kind="BF16",
        weights="bf16.gguf",
    ),
    Side(
        name="OpenVINO F16",
        engine="openvino",
        format="16-bit",
        kind="F16",
        weights="openvino-f16",
    ),
    Side(
        name="anyorder int8",
        engine="anyorder",
        format="8-bit",
        kind="int8",
    ),
    Side(
        name="llama.cpp Q8_0",
        engine="llama.cpp",
        format="8-bit",
        kind="Q8_0",
        weights="q8_0.gguf",
    ),
    Side(
        name="OpenVINO Q8_0",
        engine="openvino",
        format="8-bit",
        kind="Q8_0",
        weights="openvino-q8",
    ),
    Side(
        name="CTranslate2 int8",
        engine="ctranslate2",
        format="8-bit",
        kind="int8",
        weights="ctranslate2-int8",
        looks_up=False,
        threads=1,
    ),
    Side(
        name="anyorder int4",
        engine="anyorder",
        format="4-bit",
        kind="int4",
    ),
    Side(
        name="llama.cpp as it comes",
        engine="llama.cpp",
        format="4-bit",
        kind="Q4_1",
    ),
    Side(
        name="OpenVINO as it comes",
        engine="openvino",
        format="4-bit",
        kind="Q4_1",
        weights="openvino-q4",
    ),
)

REFERENCE = SIDES[0]


def is_peer(side: Side) -> bool:
    """Is it somebody else's?"""
    return side.engine != REFERENCE.engine
