"""SEDD (arXiv 2310.16834) with absorbing noise: MDLM's network, trained on ratios of probabilities.

At a masked place it tells, for each token, how much likelier the text is with it than with the
mask; that is the token's probability times a number that depends on the noise level alone, so that
the softmax of its outputs is what `masked_diffusion` needs. `commit=ancestral` is the reverse
process that its authors' analytic sampler follows. It looks at the noise level.

Its config.json has no model_type. Tokenizers are as for `mdlm`. Not here: uniform noise, for which
outputs mean ratios to the token that stands; checkpoints stored as pickles.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.architectures.mdlm import Mdlm
from anyorder.model.config import ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import DIT_NAMES, NameMap


class Sedd(Architecture):
    """The names of MDLM without a prefix; the fields of its authors' program."""

    marks: ClassVar[tuple[str, ...]] = ("tokens", "graph", "noise", "model")
    names: ClassVar[NameMap] = {**DIT_NAMES, "head": "output_layer.linear"}

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        model, graph = fields.inside("model"), fields.inside("graph")
        if graph.text("type") != "absorb":
            raise graph.refuse("type", "only absorbing noise (absorb) is supported.")
        plain = {
            "vocab_size": fields.size("tokens") + 1,
            "hidden_dim": model.size("hidden_size"),
            "n_heads": model.size("n_heads"),
            "n_blocks": model.layer_count("n_blocks"),
            "cond_dim": model.size("cond_dim"),
            "model_length": model.size("length"),
            "time_conditioning": True,
        }
        return replace(Mdlm.config(Fields(plain, fields.origin)), architecture="sedd")
