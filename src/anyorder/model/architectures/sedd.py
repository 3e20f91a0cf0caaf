"""SEDD (arXiv 2310.16834): MDLM's network, trained on ratios of probabilities; it looks at the
noise level.

With absorbing noise it tells at a masked place, for each token, how much likelier the text is with
it than with the mask; that is the token's probability times a number that depends on the noise
level alone, so that the softmax of its outputs is what `masked_diffusion` needs.
`commit=ancestral` is the reverse process that its authors' analytic sampler follows.

With uniform noise it tells how much likelier the noisy text is with each token than with the one
that stands there; `sampling/ratios.py` reads clean tokens off that, and `uniform_diffusion` takes
the analytic sampler's steps, as many and on as geometric a schedule of noise as its authors.

Its config.json has no model_type. Tokenizers are as for `mdlm`. Not here: checkpoints stored as
pickles.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.architectures.mdlm import Mdlm
from anyorder.model.config import ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import DIT_NAMES, NameMap

_SCHEDULES = {"loglinear": "linear", "geometric": "geometric"}
"""The program's names of noise -> ours."""


class Sedd(Architecture):
    """The names of MDLM without a prefix; the fields of its authors' program."""

    marks: ClassVar[tuple[str, ...]] = ("tokens", "graph", "noise", "model")
    names: ClassVar[NameMap] = {**DIT_NAMES, "head": "output_layer.linear"}

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        model, graph = fields.inside("model"), fields.inside("graph")
        kind = graph.text("type")
        if kind not in ("absorb", "uniform"):
            raise graph.refuse("type", "only absorb and uniform are supported.")
        absorbs = kind == "absorb"
        plain = {
            "vocab_size": fields.size("tokens") + absorbs,
            "hidden_dim": model.size("hidden_size"),
            "n_heads": model.size("n_heads"),
            "n_blocks": model.layer_count("n_blocks"),
            "cond_dim": model.size("cond_dim"),
            "model_length": model.size("length"),
            "time_conditioning": True,
        }
        config = replace(Mdlm.config(Fields(plain, fields.origin)), architecture="sedd")
        if absorbs:
            return config
        if model.flag("scale_by_sigma", False):
            raise model.refuse("scale_by_sigma", "only absorbing noise is scaled by its level.")
        noise = fields.inside("noise")
        if noise.text("type") not in _SCHEDULES:
            raise noise.refuse("type", f"known are {' and '.join(_SCHEDULES)}.")
        options = {"steps": 1024, "schedule": _SCHEDULES[noise.text("type")]}
        return replace(
            config,
            mask_token=None,
            knows_masks=False,
            tells_ratios=True,
            decoding={"uniform_diffusion": options},
        )
