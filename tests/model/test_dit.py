"""MDLM, BD3-LM and UDLM: logits equal those of a naive dense twin, from checkpoints of both kinds
of noise conditioning."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.model import dit_twin
from tests.model.dit_twin import LENGTH, VOCABULARY

from anyorder.core.attention import BIDIRECTIONAL, Blocks
from anyorder.core.batch import PackedBatch, dense_batch
from anyorder.core.errors import CheckpointError
from anyorder.model.checkpoint import open_folder
from anyorder.model.loading import load_network
from anyorder.model.saving import stored_tensors
from anyorder.model.transformer import Transformer

CASES: dict[str, dict[str, Any]] = {
    "mdlm": {"model_type": "mdlm", "time_conditioning": False},
    "mdlm-timed": {"model_type": "mdlm", "time_conditioning": True},
    "bd3lm": {"model_type": "bd3lm", "block_size": 4, "cross_attn": True},
    "bd3lm-plain": {"model_type": "bd3lm", "block_size": 8, "adaln": False},
    "bd3lm-pretrained": {"model_type": "bd3lm", "block_size": LENGTH},
    "bd3lm-causal": {"model_type": "bd3lm", "block_size": 1, "causal": True},
    "udlm": {"model_type": "udlm", "time_conditioning": True},
}


def load(case: str, folder: Path) -> tuple[Transformer, dit_twin.Weights]:
    fields = CASES[case]
    tensors = dit_twin.weights(adaptive=fields.get("adaln", True))
    config, source = open_folder(dit_twin.save(folder, tensors, **fields))
    return load_network(config, source, dtype=torch.float32), tensors


def noisy(batch: PackedBatch, shares: torch.Tensor) -> PackedBatch:
    return PackedBatch(
        tokens_N=batch.tokens_N,
        positions_N=batch.positions_N,
        slots_N=None,
        groups=batch.groups,
        noise_N=shares,
    )


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_logits(case: str, tmp_path: Path) -> None:
    """Of two texts at two levels of noise, which half of these networks look at."""
    network, tensors = load(case, tmp_path)
    fields = CASES[case]
    ids_BT = torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    visible = BIDIRECTIONAL.visible(LENGTH)
    if fields.get("causal"):
        visible = visible.tril()
    elif network.config.block_size:
        visible = Blocks(size=network.config.block_size).visible(LENGTH)
    shares = (0.3, 0.8)
    noise_N = torch.tensor(shares).repeat_interleave(LENGTH)
    ours_NV = network.logits(network.hidden(noisy(dense_batch(ids_BT, visible[None]), noise_N)))
    for row, share in enumerate(shares):
        sigma = -math.log(1 - share) if fields.get("time_conditioning") else 0.0
        theirs = dit_twin.logits(tensors, ids_BT[row].tolist(), sigma=sigma, visible=visible)
        assert theirs.std() > 0.2, "flat logits would hide mistakes"
        ours = ours_NV.view(2, LENGTH, -1)[row]
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["mdlm", "bd3lm-plain"])
def test_saved_as_it_was_stored(case: str, tmp_path: Path) -> None:
    network, _ = load(case, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    again = stored_tensors(network)
    dropped = {"backbone.rotary_emb.inv_freq", "sampling_eps_min", "sampling_eps_max"}
    assert set(again) == set(stored) - dropped
    assert all(torch.equal(tensor, stored[name]) for name, tensor in again.items())


def test_what_they_were_trained_for(tmp_path: Path) -> None:
    configs = {}
    for case in CASES:
        folder = tmp_path / case
        folder.mkdir()
        configs[case] = load(case, folder)[0].config
    mask = VOCABULARY - 1
    assert {case: config.block_size for case, config in configs.items()} == {
        **dict.fromkeys(CASES, 0),
        "bd3lm": 4,
        "bd3lm-plain": 8,
    }
    assert {case for case, config in configs.items() if config.mask_token != mask} == {
        "bd3lm-causal",
        "udlm",
    }
    assert {case for case, config in configs.items() if "causal" in config.attention} == {
        "bd3lm-causal"
    }
    assert not configs["udlm"].knows_masks


def test_networks_guided_by_a_class_are_refused(tmp_path: Path) -> None:
    dit_twin.save(tmp_path, dit_twin.weights(), model_type="udlm", cfg=True)
    with pytest.raises(CheckpointError, match="guided by a class"):
        open_folder(tmp_path)


@torch.inference_mode()
def test_sedd(tmp_path: Path) -> None:
    """At masks, its ratios as published are our probabilities times one number a text."""
    tensors = dit_twin.weights()
    config, source = open_folder(dit_twin.save_sedd(tmp_path, tensors))
    network = load_network(config, source, dtype=torch.float32)
    mask, share = VOCABULARY - 1, 0.6
    assert (config.mask_token, config.vocabulary_size) == (mask, VOCABULARY)
    tokens = [4, mask, 5, mask, mask, 6]
    visible = BIDIRECTIONAL.visible(len(tokens))
    batch = dense_batch(torch.tensor([tokens]), visible[None])
    ours = network.logits(network.hidden(noisy(batch, torch.full((6,), share)))).softmax(-1)
    sigma = -math.log(1 - share)
    scores = dit_twin.logits(tensors, tokens, sigma=sigma)
    ratios = (scores - math.log(math.expm1(sigma)) - math.log(VOCABULARY - 1)).exp()
    for place in (1, 3, 4):
        shares = ratios[place, :mask] / ratios[place, :mask].sum()
        expected = ours[place, :mask] / ours[place, :mask].sum()
        torch.testing.assert_close(shares, expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_sedd_with_uniform_noise(tmp_path: Path) -> None:
    """Every token of the vocabulary is a word, and outputs are those of the published program."""
    tensors = dit_twin.weights()
    folder = dit_twin.save_sedd(tmp_path, tensors, graph="uniform", noise="geometric")
    config, source = open_folder(folder)
    network = load_network(config, source, dtype=torch.float32)
    assert config.mask_token is None and not config.knows_masks and config.tells_ratios
    assert config.vocabulary_size == VOCABULARY
    assert config.decoding == {"uniform_diffusion": {"steps": 1024, "schedule": "geometric"}}
    tokens, share = [4, 59, 5, 17, 17, 6], 0.6
    batch = dense_batch(torch.tensor([tokens]), BIDIRECTIONAL.visible(len(tokens))[None])
    ours = network.logits(network.hidden(noisy(batch, torch.full((6,), share))))
    theirs = dit_twin.logits(tensors, tokens, sigma=-math.log(1 - share))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"graph": "graph"}, "type = 'graph' in 'graph' of .* only absorb and uniform"),
        ({"graph": "uniform", "noise": "cubic"}, "type = 'cubic' .* known are loglinear"),
        ({"graph": "uniform", "scaled": True}, "scale_by_sigma = True .* only absorbing"),
    ],
)
def test_sedd_that_nobody_can_decode_is_refused(
    fields: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=words):
        open_folder(dit_twin.save_sedd(tmp_path, {}, **fields))


def test_a_configuration_of_no_known_kind(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="lacks the field 'model_type'"):
        open_folder(tmp_path)


def test_a_checkpoint_without_its_embedding(tmp_path: Path) -> None:
    tensors = dit_twin.weights()
    del tensors["vocab_embed.embedding"]
    config, source = open_folder(dit_twin.save(tmp_path, tensors, model_type="mdlm"))
    with pytest.raises(CheckpointError, match=r"lacks .* backbone.vocab_embed.embedding\."):
        load_network(config, source, dtype=torch.float32)
