"""Which drafter a folder holds, by what its config.json says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from anyorder.core.batch import Network
from anyorder.core.method import Abilities
from anyorder.model.drafters.dflash import load_dflash
from anyorder.model.drafters.eagle import load_eagle
from anyorder.model.drafters.medusa import load_medusa
from anyorder.model.safetensors_folder import read_json
from anyorder.model.transformer import Transformer

Loader = Callable[[Path, str, Transformer, Abilities], tuple[Network, Abilities]]
"""From a folder, its name, the target's network and what the target can do."""

_BY_FIELD: dict[str, Loader] = {
    "medusa_num_heads": load_medusa,
    "dflash_config": load_dflash,
    "draft_vocab_size": load_eagle,
}
"""The field of config.json that only this kind has -> its loader."""


def drafter_loader(folder: Path) -> Loader | None:
    """What loads the drafter in this folder; None if it is a model of its own."""
    fields = read_json(folder / "config.json")
    return next((loader for field, loader in _BY_FIELD.items() if field in fields), None)
