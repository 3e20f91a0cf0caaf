"""The part of a vocabulary that a drafter scores: where it is stored, and what it is read out with.

Checkpoints hold `d2t`, what to add to a row of the drafter's output layer to get its token, and
`t2d`, whether a token has a row, as EAGLE-3's do. A drafter without an output layer of its own
reads out with the target's rows for those tokens: nothing to store and nothing to train.

Shape suffixes: S scored tokens, W width, V vocabulary; further dimensions come before them.
"""

from __future__ import annotations

import torch

from anyorder.core.errors import CheckpointError
from anyorder.model.backends.quantized import QuantizedLinear
from anyorder.model.safetensors_folder import SafetensorsFolder
from anyorder.model.transformer import Transformer

MAPS = ("d2t", "t2d")
"""The tensors that say which tokens are scored."""


def read_scored(source: SafetensorsFolder, num_scored: int, vocabulary: int) -> torch.Tensor | None:
    """The tokens that a checkpoint's rows stand for, int64 [S]; None: all, in order."""
    if "d2t" not in set(source.names()):
        if num_scored == vocabulary:
            return None
        raise CheckpointError(
            f"the checkpoint lacks tensor 'd2t', which tells the tokens of the {num_scored} rows "
            "of 'lm_head'; fetch it again."
        )
    offsets = source.integers("d2t")
    rows = torch.arange(num_scored)
    if (
        offsets.shape != rows.shape
        or not 0 <= int((rows + offsets).min()) <= int((rows + offsets).max()) < vocabulary
    ):
        raise CheckpointError(
            f"tensor 'd2t' must lead each of {num_scored} rows to a token below {vocabulary}."
        )
    return rows + offsets


def scored_tensors(scored_S: torch.Tensor | None, vocabulary: int) -> dict[str, torch.Tensor]:
    """What `read_scored` reads."""
    if scored_S is None:
        return {}
    scored_S = scored_S.cpu()
    return {
        "d2t": scored_S - torch.arange(len(scored_S)),
        "t2d": torch.isin(torch.arange(vocabulary), scored_S),
    }


def output_rows(target: Transformer, scored_S: torch.Tensor | None) -> torch.Tensor:
    """What the target makes these tokens' logits with, [S, W]; a copy unless it is all of it."""
    if target.config.tied_embeddings:
        weight_VW = target.embedding.weight.detach()
    elif isinstance(target.head, QuantizedLinear):
        weight_VW = target.head.expanded(target.dtype)
    else:
        weight_VW = target.head.weight.detach()
    return weight_VW if scored_S is None else weight_VW[scored_S.to(weight_VW.device)]


def spread(scores: torch.Tensor, scored_S: torch.Tensor | None, vocabulary: int) -> torch.Tensor:
    """Logits [..., V] from those of the scored tokens [..., S]: minus infinity for the others."""
    if scored_S is None:
        return scores
    logits = scores.new_full((*scores.shape[:-1], vocabulary), -torch.inf)
    logits[..., scored_S] = scores
    return logits
