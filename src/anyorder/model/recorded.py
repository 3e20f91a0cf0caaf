"""What a network was trained for, recorded in its config.json under a key of our own.

Nothing else in a checkpoint says whether its weights know two-way attention or denoise blocks.
Other programs overlook the key; published checkpoints lack it and are taken for causal models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from anyorder.core.errors import CheckpointError
from anyorder.core.method import Abilities, AttentionKind
from anyorder.model.fields import Fields
from anyorder.model.safetensors_folder import read_json

_KEY = "anyorder"


def record(fields: Mapping[str, Any], abilities: Abilities) -> dict[str, Any]:
    """The fields of a config.json with what the network was trained for."""
    trained = {
        "attention": sorted(abilities.attention),
        "mask_token": abilities.mask_token,
        "block_size": abilities.block_size,
        "clean_text": abilities.clean_text,
        "whole_canvas": abilities.whole_canvas,
        "token_shift": abilities.token_shift,
    }
    return {**fields, _KEY: trained}


def recorded(folder: Path, abilities: Abilities) -> Abilities:
    """`abilities`, and beyond them what the folder's config.json says; CheckpointError if it is
    damaged."""
    origin = folder / "config.json"
    found = read_json(origin).get(_KEY)
    if found is None:
        return abilities
    if not isinstance(found, dict):
        raise CheckpointError(f"{_KEY} in {origin} must be an object, not {found!r}.")
    fields = Fields(found, f"{_KEY} in {origin}")
    kinds, known = found.get("attention"), get_args(AttentionKind)
    clean_text = found.get("clean_text", "bidirectional")
    if clean_text not in known:
        raise CheckpointError(
            f"{fields.origin}: clean_text must be one of {', '.join(known)}, got {clean_text!r}."
        )
    if not isinstance(kinds, list) or not kinds or any(kind not in known for kind in kinds):
        raise CheckpointError(
            f"{fields.origin}: attention must be a list of {', '.join(known)}, got {kinds!r}."
        )
    mask_token = fields.integer("mask_token") if fields.has("mask_token") else None
    if mask_token is not None and mask_token >= abilities.vocabulary_size:
        raise CheckpointError(
            f"{fields.origin}: mask_token must be below {abilities.vocabulary_size}, got "
            f"{mask_token}."
        )
    return replace(
        abilities,
        attention=frozenset(kinds),
        mask_token=mask_token,
        block_size=fields.integer("block_size", 0),
        clean_text=clean_text,
        whole_canvas=fields.flag("whole_canvas", False),
        token_shift=fields.flag("token_shift", False),
    )
