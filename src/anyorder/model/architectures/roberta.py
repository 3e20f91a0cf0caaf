"""RoBERTa (arXiv 1907.11692): BERT with positions counted from behind the padding token's id.

Not here: what `bert` leaves out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from anyorder.core.errors import CheckpointError
from anyorder.model.architectures.bert import Bert
from anyorder.model.config import ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import BERT_NAMES, NameMap, Stored


class Roberta(Bert):
    """The first rows of the position table belong to padding."""

    model_types: ClassVar[tuple[str, ...]] = ("roberta", "xlm-roberta")
    prefixes: ClassVar[tuple[str, ...]] = ("roberta.",)
    names: ClassVar[NameMap] = {
        **BERT_NAMES,
        "head": "lm_head.decoder",
        "head_transform.dense": "lm_head.dense",
        "head_transform.norm": "lm_head.layer_norm",
        "logit_bias": Stored(name="lm_head.bias", suffixed=False),
    }
    ignored: ClassVar[tuple[str, ...]] = (*Bert.ignored, "lm_head.decoder.bias")

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        bert = Bert.config(fields)
        offset = fields.integer("pad_token_id", 1) + 1
        if offset >= bert.learned_positions:
            raise CheckpointError(
                f"{fields.origin}: {bert.learned_positions} positions behind a padding token of "
                f"id {offset - 1} leave none for texts."
            )
        return replace(
            bert,
            architecture="roberta",
            context_length=bert.learned_positions - offset,
            position_offset=offset,
            # Whatever its checkpoints say, the model's head has the exact GELU.
            head_transform="gelu",
        )
