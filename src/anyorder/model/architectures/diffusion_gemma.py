"""DiffusionGemma, text only: Gemma 4's layers read text causally, and a canvas of noise behind it
both ways.

A canvas sees all of the text (in local layers the last of it, the same for all of the canvas's
tokens) and itself; its embeddings are conditioned on what the network believed of them before.
`uniform_diffusion` decodes it, canvas after canvas, by default with its authors' options. Text and
canvas share all weights but the layers' scales. Not here: images, whose parts are left aside.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.architectures.gemma4 import Gemma4
from anyorder.model.config import ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import NameMap, Stored

_TEXT = "model.encoder.language_model.layers.{layer}.layer_scalar"
_DECODING = {
    "sampler": "renoise",
    "steps": 48,
    "commit": {"name": "entropy_bound", "bound": 0.1},
    "first_temperature": 0.8,
    "last_temperature": 0.4,
    "sure": 0.005,
}


class DiffusionGemma(Architecture):
    """Experts in every layer; global layers' keys are their values."""

    model_types: ClassVar[tuple[str, ...]] = ("diffusion_gemma",)
    prefixes: ClassVar[tuple[str, ...]] = ("model.decoder.",)
    names: ClassVar[NameMap] = {
        **Gemma4.names,
        "layers.{layer}.text_scale": Stored(name=_TEXT, suffixed=False),
        "self_conditioning.norm": "self_conditioning.pre_norm",
        "self_conditioning.mlp.gate": "self_conditioning.gate_proj",
        "self_conditioning.mlp.up": "self_conditioning.up_proj",
        "self_conditioning.mlp.down": "self_conditioning.down_proj",
    }
    beyond: ClassVar[tuple[str, ...]] = (
        "model.encoder.vision_tower.",
        "model.encoder.embed_vision.",
    )

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        fields.require("tie_word_embeddings", True, True)
        text = fields.inside("text_config")
        config = Gemma4.described(text, experts=True, keys_are_values=True)
        ends = text.integers("eos_token_id") | fields.integers("eos_token_id")
        return replace(
            config,
            architecture="diffusion_gemma",
            end_tokens=ends,
            attention=frozenset({"bidirectional"}),
            knows_masks=False,
            canvas_length=fields.size("canvas_length", 256),
            self_conditioning=True,
            decoding={"uniform_diffusion": _DECODING},
        )
