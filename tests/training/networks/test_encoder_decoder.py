"""New encoder-decoders, saved as folders that the engine's loader and transformers read alike."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.runs import byte_tokenizer

from anyorder.core.batch import CrossMemory, dense_batch
from anyorder.core.errors import InvalidRequest, UserError
from anyorder.core.options import build
from anyorder.model.encoder_decoder import EncoderDecoder as Network
from anyorder.model.loaded import load
from anyorder.model.tokenizer import Tokenizer
from anyorder.training.network import Surroundings, Trainee
from anyorder.training.networks.encoder_decoder import EncoderDecoder
from anyorder.training.objectives.next_token import NextToken

SIZES = {"width": 32, "encoder_layers": 2, "decoder_layers": 3, "heads": 4, "context": 24}


def make(folder: Path, **changes: Any) -> tuple[EncoderDecoder, Trainee]:
    tokenizer = Tokenizer.from_folder(byte_tokenizer(folder / "tokenizer"))
    recipe = build(EncoderDecoder, changes if "init" in changes else {**SIZES, **changes})
    surroundings = Surroundings(
        tokenizer=tokenizer,
        objective=NextToken(),
        length=16,
        seed=3,
        locate=lambda name: name,
        counts=torch.zeros,
    )
    return recipe, recipe.make(surroundings)


def logits(network: Any, sources_BS: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    everything = torch.ones(1, *sources_BS.shape[1:] * 2, dtype=torch.bool)
    states_BSW = network.encode(dense_batch(sources_BS, everything)).view(*sources_BS.shape, -1)
    memory = CrossMemory(states_RSW=states_BSW)
    hidden = network.hidden(dense_batch(targets_BT, memory=memory))
    return network.logits(hidden).view(*targets_BT.shape, -1)  # type: ignore[no-any-return]


@torch.no_grad()
def spread_out(trainee: Trainee) -> Network:
    """Logits of fresh weights are too flat to tell mistakes apart."""
    network = trainee.network
    assert isinstance(network, Network)
    for parameter in network.parameters():
        parameter.mul_(4.0).add_(0.01)
    return network


@pytest.mark.parametrize("tied", [True, False])
def test_saved_networks_load_again(tmp_path: Path, tied: bool) -> None:
    recipe, trainee = make(tmp_path, tied_embeddings=tied, length_head=True)
    network = spread_out(trainee)
    recipe.save(tmp_path / "model", trainee, tmp_path / "tokenizer")
    loaded = load(tmp_path / "model")
    assert isinstance(loaded.network, Network)
    sources, targets = torch.arange(18).view(2, 9), torch.arange(40, 54).view(2, 7)
    ours, again = (logits(n, sources, targets) for n in (network, loaded.network))
    assert ours.std() > 0.1
    torch.testing.assert_close(again, ours.detach())
    states = torch.randn(3, 32)
    lengths = network.length_logits(states)
    assert lengths.shape == (3, 25)
    torch.testing.assert_close(loaded.network.length_logits(states), lengths.detach())
    for abilities in (trainee.abilities, loaded.abilities):
        assert abilities.text_rules.start_tokens == (256,)
        assert abilities.source_length == abilities.context_length == 24
    again_recipe, tuned = make(tmp_path, init=str(tmp_path / "model"))
    assert again_recipe.source == str(tmp_path / "model")
    for (name, ours), (_, theirs) in zip(
        network.named_parameters(), tuned.network.named_parameters(), strict=True
    ):
        torch.testing.assert_close(theirs, ours, msg=name)
        assert theirs.requires_grad


def test_transformers_reads_what_was_saved(tmp_path: Path) -> None:
    import transformers

    recipe, trainee = make(tmp_path)
    network = spread_out(trainee)
    recipe.save(tmp_path / "model", trainee, tmp_path / "tokenizer")
    theirs = transformers.MBartForConditionalGeneration.from_pretrained(tmp_path / "model").eval()
    sources, targets = torch.arange(18).view(2, 9), torch.arange(40, 54).view(2, 7)
    with torch.no_grad():
        expected = theirs(input_ids=sources, decoder_input_ids=targets).logits
    torch.testing.assert_close(
        logits(network, sources, targets).detach(), expected, atol=1e-4, rtol=0
    )


def test_new_weights_depend_on_the_seed_alone_and_start_flat(tmp_path: Path) -> None:
    (_, first), (_, second) = make(tmp_path), make(tmp_path)
    for ours, theirs in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    sources, targets = torch.arange(18).view(2, 9), torch.arange(40, 54).view(2, 7)
    losses = -logits(first.network, sources, targets).log_softmax(-1)
    assert abs(losses.mean().item() - math.log(258)) < 0.1


def test_recipes_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="lacks decoder_layers"):
        EncoderDecoder(width=32, encoder_layers=2, heads=4)
    with pytest.raises(InvalidRequest, match="try width = 32"):
        EncoderDecoder(**{**SIZES, "width": 34})  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="init and width"):
        EncoderDecoder(init="somewhere", width=32)
    with pytest.raises(InvalidRequest, match="init and length_head"):
        EncoderDecoder(init="somewhere", length_head=True)


def test_a_decoder_is_refused(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=258, intermediate_size=16, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "decoder")
    with pytest.raises(UserError, match="has no encoder"):
        make(tmp_path, init=str(tmp_path / "decoder"))
