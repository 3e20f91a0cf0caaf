"""DiffusionGemma: logits of a canvas equal those of transformers, from the same checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.model.checkpoints import random_ids
from tests.model.diffusion_gemma import CANVAS, END, reference
from tests.model.paged import PAGE, Cached

from anyorder.core.batch import AttentionGroup, PackedBatch
from anyorder.model.checkpoint import open_folder
from anyorder.model.loaded import abilities_of
from anyorder.model.loading import load_network
from anyorder.model.saving import stored_tensors

TEXT = 12


@pytest.mark.parametrize("conditioned", [False, True])
@torch.inference_mode()
def test_logits(conditioned: bool, tmp_path: Path) -> None:
    """Behind a text longer than the windows, with a belief of an earlier pass and without."""
    model = reference()
    model.save_pretrained(tmp_path)
    config, source = open_folder(tmp_path)
    network = load_network(config, source, dtype=torch.float32)
    text_T, canvas_C = random_ids(TEXT), random_ids(CANVAS, seed=2)
    belief = 2 * torch.randn(CANVAS, config.vocabulary_size, generator=torch.Generator())
    theirs = model(
        input_ids=text_T[None],
        decoder_input_ids=canvas_C[None],
        self_conditioning_logits=belief[None] if conditioned else None,
    ).logits[0]
    assert theirs.std() > 0.2, "flat logits would hide mistakes"
    cached = Cached(network, num_sequences=1, length=TEXT + CANVAS)
    cached.run([(0, text_T)])
    positions = torch.arange(TEXT, TEXT + CANVAS)
    num_pages = -(-(TEXT + CANVAS) // PAGE)
    keys_1K = torch.arange(num_pages * PAGE)[None]
    pages_1P = cached.pages_SP[:1, :num_pages]
    group = AttentionGroup(
        first_row=0,
        num_requests=1,
        num_queries=CANVAS,
        pages_RP=pages_1P,
        query_positions_RQ=positions[None],
        key_positions_RK=keys_1K,
        window_positions_RQ=torch.full((1, CANVAS), TEXT),
        visible_RQK=(keys_1K < TEXT + CANVAS)[:, None].expand(1, CANVAS, -1),
    )
    conditioning = ()
    if conditioned:
        conditioning = ((0, network.mean_embedding(belief.softmax(-1))),)
    batch = PackedBatch(
        tokens_N=canvas_C,
        positions_N=positions,
        slots_N=pages_1P[0][positions // PAGE] * PAGE + positions % PAGE,
        groups=(group,),
        conditioning=conditioning,
        canvas_N=torch.ones(CANVAS, dtype=torch.bool),
    )
    ours = network.logits(network.hidden(batch, cached.pool))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_what_it_was_trained_for_and_how_it_is_stored(tmp_path: Path) -> None:
    reference().save_pretrained(tmp_path)
    config, source = open_folder(tmp_path)
    abilities = abilities_of("tiny", config, None)
    assert (abilities.canvas_length, abilities.mask_token) == (CANVAS, None)
    assert abilities.attention == {"bidirectional"} and END in abilities.end_tokens
    again = stored_tensors(load_network(config, source, dtype=torch.float32))
    stored = load_file(tmp_path / "model.safetensors")
    vision = {name for name in stored if "vision" in name}
    assert vision and set(again) == set(stored) - vision
    assert all(torch.equal(tensor, stored[name]) for name, tensor in again.items())
