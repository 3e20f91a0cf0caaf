"""UDLM (arXiv 2412.10193): MDLM's network for uniform noise; it looks at the noise level.

It tells the clean token at every place and knows no masks, whatever its tokenizer (BERT's) has;
`uniform_diffusion` decodes it, ancestrally as its authors do. The frame of that tokenizer, [CLS]
and [SEP], stands around prompt and canvas. Not here: networks guided by a class.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.architectures.mdlm import Mdlm
from anyorder.model.config import ModelConfig, Modulation
from anyorder.model.fields import Fields
from anyorder.model.naming import DIT_NAMES, NameMap


class Udlm(Architecture):
    """The names and fields of MDLM."""

    model_types: ClassVar[tuple[str, ...]] = ("udlm",)
    prefixes: ClassVar[tuple[str, ...]] = ("backbone.",)
    names: ClassVar[NameMap] = DIT_NAMES

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        if fields.flag("cfg", False):
            raise fields.refuse("cfg", "networks guided by a class are not supported.")
        reads_noise = fields.flag("time_conditioning", True)
        return replace(
            Mdlm.config(fields),
            architecture="udlm",
            mask_token=None,
            knows_masks=False,
            closes_texts=True,
            decoding={},
            modulation=Modulation(width=fields.size("cond_dim"), reads_noise=reads_noise),
        )
