"""BD3-LM (arXiv 2503.09573): MDLM's network in blocks, which see themselves and those before.

Blocks are counted from the start of the prompt, and keys and values of clean ones are cached. The
authors draw one place of a block after the other (first hitting), which `commit=random` does, the
default on these checkpoints. A network whose block is its whole length sees everything; one that
its configuration calls causal is an autoregressive model.

Tokenizers and noise levels are as for `mdlm`. Not here: the authors' window that slides on where a
text is longer than the network's length, and their stop at low entropy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.architectures.mdlm import Mdlm
from anyorder.model.config import ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import DIT_NAMES, NameMap


class Bd3lm(Architecture):
    """The names and fields of MDLM."""

    model_types: ClassVar[tuple[str, ...]] = ("bd3lm",)
    prefixes: ClassVar[tuple[str, ...]] = ("backbone.",)
    names: ClassVar[NameMap] = DIT_NAMES
    ignored: ClassVar[tuple[str, ...]] = ("sampling_eps_min", "sampling_eps_max")

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        config = replace(Mdlm.config(fields), architecture="bd3lm")
        if not fields.flag("adaln", True):
            config = replace(config, modulation=None)
        if fields.flag("causal", False):
            return replace(config, attention=frozenset({"causal"}), mask_token=None, decoding={})
        block_size = fields.size("block_size")
        if not fields.flag("cross_attn", True) or block_size >= config.context_length:
            return config
        return replace(
            config,
            block_size=block_size,
            decoding={"block_diffusion": {"commit": "random"}},
        )
