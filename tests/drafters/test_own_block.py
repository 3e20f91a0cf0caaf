"""Masks behind the text that the target fills in itself, against dense passes of the network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.methods.same_text import (
    SITUATIONS,
    assert_same_text,
    greedy,
    ids,
)
from tests.methods.test_block_diffusion import MASKS, block_model, dense
from tests.tiny import tiny_engine, tiny_model

from anyorder.core.drafter import Draft
from anyorder.core.errors import UnsupportedMethod
from anyorder.core.method import Context
from anyorder.core.request import Request
from anyorder.methods.speculative import Speculative
from anyorder.model.loaded import LoadedModel


def filler(**abilities: Any) -> LoadedModel:
    """Reads from left to right, and fills in blocks of 4 behind that."""
    return block_model(**{"clean_text": "causal", **abilities})


def options(length: int = 4, **drafter: Any) -> dict[str, Any]:
    return {"drafter": {"name": "own_block", **drafter}, "length": length, "adaptive": False}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("shift", [False, True])
def test_writes_the_plain_text(situation: str, shift: bool) -> None:
    model = filler(token_shift=shift)
    for completion in assert_same_text("speculative", options(), situation, model):
        assert completion.report.exact


def test_adapts_its_length_and_writes_the_plain_text() -> None:
    assert_same_text("speculative", {"drafter": "own_block"}, "together", filler())


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("size", [None, 3])
def test_proposes_what_a_dense_pass_over_masks_says(
    shift: bool, size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text from left to right, masks that see it and each other; a draft's first token is always
    right, as the text's last one tells it."""
    model, prompt, num_new = filler(token_shift=shift, end_tokens=frozenset()), ids(8, 12), 30
    text = greedy(prompt, num_new, tiny_model(ends=False))
    assert MASKS not in text
    num_final, total, drafts = len(prompt) + 1, 0, list[list[int]]()
    while num_final < len(text):
        room = min(size or 4, len(text) - num_final - 1)
        line = [*text[:num_final], *[MASKS] * room]
        visible = torch.ones(len(line), len(line), dtype=torch.bool).tril()
        visible[num_final:, num_final:] = True
        says = dense(line, range(len(line)), visible).argmax(-1).tolist()
        rows = [num_final - 1, *(row - shift for row in range(num_final + 1, num_final + room))]
        drafts.append([says[row] for row in rows[:room]])
        right = 0
        while right < room and drafts[-1][right] == text[num_final + right]:
            right += 1
        assert right >= min(room, 1)
        num_final, total = num_final + right + 1, total + right
    request = Request(
        prompt=prompt,
        method="speculative",
        options=options(9, **({} if size is None else {"block_size": size})),
        max_new_tokens=num_new,
    )
    proposed = list[list[int]]()

    def note(self: Speculative, draft: Draft, context: Context) -> None:
        proposed.append(list(draft.tokens))

    monkeypatch.setattr(Speculative, "_validate", note)
    completion = tiny_engine(model=model).generate(request)
    assert completion.tokens == text[len(prompt) :]
    assert proposed == drafts
    assert completion.report.mean_accepted_length == (total + len(drafts)) / len(drafts)
    # The prompt's pass, and two for each check, or one where there is no room for a draft.
    num_passes = 1 + sum(2 if draft else 1 for draft in drafts)
    assert completion.report.num_forward_passes == num_passes


def test_what_reads_clean_blocks_both_ways_cannot() -> None:
    request = Request(prompt=[5, 6], method="speculative", options=options())
    for model in (tiny_model(), block_model()):
        with pytest.raises(UnsupportedMethod, match="reads from left to right; tiny does not"):
            tiny_engine(model=model).generate(request)
