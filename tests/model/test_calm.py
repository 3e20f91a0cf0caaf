"""CALM's networks: what sees what, and folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.paged import Cached, Pool
from tests.training.runs import byte_tokenizer

from anyorder.core.batch import PackedBatch, dense_batch
from anyorder.core.errors import CheckpointError
from anyorder.model.calm import Calm, load_calm, make_calm
from anyorder.model.calm_autoencoder import (
    AutoencoderSizes,
    CalmAutoencoder,
    load_autoencoder,
    start,
)
from anyorder.model.plain_folder import save_plain
from anyorder.model.saving import llama_fields

SIZES = AutoencoderSizes(
    vocab_size=61,
    patch_size=3,
    hidden_size=24,
    intermediate_size=32,
    latent_size=8,
    fill_token_id=0,
)


def autoencoder() -> CalmAutoencoder:
    network = CalmAutoencoder(SIZES).requires_grad_(False)
    start(network.named_parameters(), seed=1)
    return network.eval()


def fields(**changes: Any) -> dict[str, Any]:
    sizes = llama_fields(
        vocabulary_size=61,
        width=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        mlp_width=24,
        context_length=96,
        tied_embeddings=True,
        end_token=0,
    )
    own = {"patch_size": 3, "latent_size": 8, "noise_size": 5, "num_mlp_layers": 2}
    nested = {"model_type": "anyorder_calm", "autoencoder": SIZES.fields()}
    return {**sizes, **own, **nested, **changes}


def calm() -> Calm:
    network = make_calm(fields(), autoencoder(), seed=2).requires_grad_(False)
    torch.nn.init.normal_(network.head.out.weight, generator=torch.Generator().manual_seed(3))
    return network.eval()


@torch.no_grad()
def test_patches_see_those_before_them_alone() -> None:
    network = calm()
    tokens_NK = torch.arange(15).view(5, 3)
    batch = dense_batch(torch.zeros(1, 5, dtype=torch.int64))
    before = network.hidden_patches(tokens_NK, batch)
    tokens_NK[3, 1] = 40
    after = network.hidden_patches(tokens_NK, batch)
    assert torch.equal(before[:3], after[:3])
    assert ((before[3:] - after[3:]).abs().amax(1) > 1e-3).all()
    # Every token of a patch counts, and where it stands.
    swapped = network.hidden_patches(tokens_NK[:, [1, 0, 2]], batch)
    assert ((swapped - after).abs().amax(1) > 1e-3).all()


@torch.no_grad()
def test_a_cached_past_gives_the_same_hidden_states() -> None:
    """Two texts of five patches in pieces, through the paged pool."""
    network = calm()
    patches_PK = torch.randint(61, (10, 3), generator=torch.Generator().manual_seed(4))

    class ByNumber:
        """Takes a patch's number for its tokens, and hidden states for logits."""

        cache_shapes, dtype = network.cache_shapes, torch.float32

        def hidden(self, batch: PackedBatch, pool: Pool) -> torch.Tensor:
            return network.hidden_patches(patches_PK[batch.tokens_N], batch, pool)

        def logits(self, hidden_NW: torch.Tensor) -> torch.Tensor:
            return hidden_NW

    cached = Cached(ByNumber(), 2, 5)  # type: ignore[arg-type]
    found: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for pieces in ([(0, 0, 3), (1, 5, 6)], [(0, 3, 4), (1, 6, 9)], [(0, 4, 5), (1, 9, 10)]):
        rows = cached.run([(text, torch.arange(start, end)) for text, start, end in pieces])
        for (text, _, _), part in zip(pieces, rows, strict=True):
            found[text].append(part)
    expected = network.hidden_patches(
        patches_PK, dense_batch(torch.zeros(2, 5, dtype=torch.int64))
    ).view(2, 5, -1)
    for text, parts in found.items():
        torch.testing.assert_close(torch.cat(parts), expected[text])


@torch.no_grad()
def test_every_draw_has_its_own_noise_and_new_models_draw_nothing() -> None:
    hidden_MW, noise_MSZ = torch.randn(4, 16), torch.rand(4, 6, 5) - 0.5
    network = calm()
    drawn = network.draw(hidden_MW, noise_MSZ)
    assert drawn.shape == (4, 6, 8)
    torch.testing.assert_close(network.draw(hidden_MW[1:2], noise_MSZ[1:2, 2:3]), drawn[1:2, 2:3])
    assert torch.cdist(drawn[0], drawn[0]).add(torch.eye(6)).amin() > 1e-3
    assert not make_calm(fields(), autoencoder(), seed=2).draw(hidden_MW, noise_MSZ).any()


@torch.no_grad()
def test_an_autoencoders_patches_do_not_see_each_other() -> None:
    network = autoencoder()
    tokens_MK = torch.arange(12).view(4, 3)
    mean_ML, log_std_ML = network.posterior(tokens_MK)
    assert mean_ML.shape == log_std_ML.shape == (4, 8)
    torch.testing.assert_close(network.posterior(tokens_MK[2:3])[0], mean_ML[2:3])
    # What is not kept does not matter.
    kept = torch.tensor([[True, False, True]] * 4)
    hidden = network.posterior(tokens_MK, kept)[0]
    tokens_MK[:, 1] = 60
    assert torch.equal(network.posterior(tokens_MK, kept)[0], hidden)
    assert (hidden - mean_ML).abs().amin(1).max() > 1e-4
    states = network.reconstruct(mean_ML)
    assert states.shape == (12, 24)
    assert torch.equal(network.tokens(mean_ML).flatten(), network.logits(states).argmax(-1))


def test_folders_hold_the_same_networks(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path / "tokenizer")
    save_plain(tmp_path / "coder", autoencoder(), SIZES.fields(), tokenizer)
    coder = load_autoencoder(tmp_path / "coder", dtype=torch.float64)
    assert coder.sizes == SIZES and coder.embedding.weight.dtype == torch.float64
    save_plain(tmp_path / "calm", calm(), fields(), tokenizer)
    found, expected = load_calm(tmp_path / "calm"), calm()
    assert (tmp_path / "calm" / "tokenizer.json").exists()
    pairs = zip(found.named_parameters(), expected.named_parameters(), strict=True)
    for (name, ours), (other, theirs) in pairs:
        assert name == other and torch.equal(ours, theirs)
    assert not found.training and found.patch_size == 3 and found.fill_token == 0


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path / "tokenizer")
    folder = tmp_path / "calm"

    def refuse(message: str, load: Any = load_calm) -> None:
        with pytest.raises(CheckpointError, match=message):
            load(folder)

    for changes, message in (
        ({"model_type": "llama"}, "of the kind 'llama', not anyorder_calm"),
        ({"latent_size": 9}, "latent_size = 9 in .*: its autoencoder has 8"),
        ({"patch_size": 2}, "patch_size = 2 in .*: its autoencoder has 3"),
        ({"num_mlp_layers": 65}, "at most 64 are supported"),
        ({"autoencoder": {}}, "of the kind None; CALM needs an autoencoder"),
        ({"autoencoder": {**SIZES.fields(), "fill_token_id": 61}}, "token ids are 0 to 60"),
        ({"intermediate_size": 25}, r"mlp.gate_up.weight' has shape \[48, 16\]"),
    ):
        save_plain(folder, calm(), fields(**changes), tokenizer)
        refuse(message)
    refuse("of the kind 'anyorder_calm'; CALM needs an autoencoder", load_autoencoder)
    save_plain(folder, calm(), fields(), tokenizer)
    weights = load_file(folder / "model.safetensors")
    extra = {**weights, "more": torch.zeros(1)}
    save_file(extra, folder / "model.safetensors")
    refuse("holds 'more', which a CALM model does not have")
    del weights["head.out.bias"]
    save_file(weights, folder / "model.safetensors")
    refuse("lacks tensor 'head.out.bias'")
    (folder / "config.json").write_text(json.dumps({"model_type": "anyorder_calm"}))
    refuse("CALM needs an autoencoder")
