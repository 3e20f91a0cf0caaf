"""Does a drafter that reads a target's hidden states belong to this target?"""

from __future__ import annotations

from anyorder.core.errors import CheckpointError
from anyorder.model.config import ModelConfig
from anyorder.model.transformer import Transformer


def check_fit(
    config: ModelConfig, target: Transformer, *, kind: str, name: str, target_name: str
) -> None:
    """CheckpointError, naming both, where vocabulary or width differ."""
    for what, own, its in (
        ("tokens", config.vocabulary_size, target.config.vocabulary_size),
        ("dimensions", config.width, target.config.width),
    ):
        if own != its:
            raise CheckpointError(
                f"the {kind} {name} has {own} {what} and the target {target_name} has {its}; use "
                f"a drafter trained for {target_name}."
            )
