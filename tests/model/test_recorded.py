"""What a network was trained for survives config.json."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from anyorder.core.errors import CheckpointError
from anyorder.core.method import Abilities
from anyorder.model.recorded import record, recorded

PLAIN = Abilities(name="tiny", vocabulary_size=9, context_length=9)


@pytest.mark.parametrize("token_shift", [False, True])
def test_what_diffusion_needs_comes_back(tmp_path: Path, token_shift: bool) -> None:
    trained = dataclasses.replace(
        PLAIN,
        attention=frozenset({"bidirectional"}),
        mask_token=8,
        block_size=4,
        clean_text="causal",
        token_shift=token_shift,
    )
    fields = record({"width": 3}, trained)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert recorded(tmp_path, PLAIN) == trained
    del fields["anyorder"]["token_shift"], fields["anyorder"]["clean_text"]  # as older files are
    (tmp_path / "config.json").write_text(json.dumps(fields))
    older = dataclasses.replace(trained, token_shift=False, clean_text="bidirectional")
    assert recorded(tmp_path, PLAIN) == older
    fields["anyorder"]["clean_text"] = "both"
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match="clean_text must be one of causal, bidirectional"):
        recorded(tmp_path, PLAIN)
    del fields["anyorder"]["clean_text"]
    fields["anyorder"]["token_shift"] = "yes"
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match="token_shift"):
        recorded(tmp_path, PLAIN)
