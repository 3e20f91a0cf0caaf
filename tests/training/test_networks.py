"""Kinds of networks: found by name, new decoders, and what a model says it was trained for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.model.checkpoints import FAMILIES, make, random_ids, save
from tests.model.test_checkpoint_gguf import CASES, write
from tests.training.runs import byte_tokenizer, memory_data, small_recipe

import anyorder
from anyorder.core import lookup
from anyorder.core.batch import dense_batch
from anyorder.core.errors import CheckpointError, UserError
from anyorder.core.options import describe
from anyorder.model.checkpoint import open_folder
from anyorder.model.loaded import load
from anyorder.model.loading import load_network
from anyorder.model.tokenizer import Tokenizer
from anyorder.model.transformer import Transformer
from anyorder.training.network import NetworkRecipe, Surroundings
from anyorder.training.networks.decoder import Decoder
from anyorder.training.objectives.next_token import NextToken
from anyorder.training.trainer import Trainer


def trained(folder: Path, **changes: Mapping[str, Any]) -> Path:
    return Trainer(small_recipe(folder / "out", **changes), data=memory_data(folder)).run()


@pytest.mark.parametrize("kind", lookup.names("training/networks"))
def test_every_kind_is_a_described_recipe(kind: str) -> None:
    cls = lookup.find("training/networks", kind, kind="[model] kind")
    assert issubclass(cls, NetworkRecipe)
    assert all(option.description for option in describe(cls))
    for method in ("make", "save"):
        assert getattr(cls, method) is not getattr(NetworkRecipe, method)


def test_unknown_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown \[model\] kind 'decodr'; did you mean 'decoder'"):
        small_recipe(tmp_path, model={"kind": "decodr"})
    with pytest.raises(UserError, match=r"\[model\] kind must be one of .*decoder.*, got 3"):
        small_recipe(tmp_path, model={"kind": 3})


LEARNED: dict[str, Any] = {"positions": "learned", "kv_heads": None, "mlp_width": None}


@pytest.mark.parametrize("tied", [True, False])
def test_learned_positions_make_a_decoder_that_transformers_runs(
    tmp_path: Path, tied: bool
) -> None:
    import transformers

    folder = trained(tmp_path, model={**LEARNED, "tied_embeddings": tied})
    network = load(folder).network
    assert isinstance(network, Transformer)
    assert network.config.learned_positions == 32 and network.config.mlp_width == 64
    ids = torch.randint(0, 258, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = network.logits(network.hidden(dense_batch(ids)))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        torch.testing.assert_close(theirs(ids).logits[0], ours, rtol=1e-4, atol=1e-4)


def test_new_weights(tmp_path: Path) -> None:
    """GPT-2's start: norms 1, biases 0, branches narrower with depth."""
    recipe = small_recipe(tmp_path / "out", model={**LEARNED, "width": 64, "layers": 8})
    network = Trainer(recipe, data=memory_data(tmp_path))._passes.trainee.network
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            expected = 0.02 / 4 if name.endswith(("out.weight", "down.weight")) else 0.02
            assert float(parameter.detach().std()) == pytest.approx(expected, rel=0.1), name


def test_grouped_keys_and_learned_positions_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"as many kv_heads as heads \(2\), got 1; leave kv_heads"):
        small_recipe(tmp_path, model={"positions": "learned"})
    with pytest.raises(UserError, match=r"\[model\] has init and positions"):
        sizes = dict.fromkeys(("width", "layers", "heads", "kv_heads", "mlp_width", "context"))
        small_recipe(tmp_path, model={**sizes, "init": "x", "positions": "rotary"})


@pytest.mark.parametrize("case", ["llama", "gpt2", "qwen2"])
def test_a_gguf_file_is_fine_tuned_and_saved_as_a_folder(tmp_path: Path, case: str) -> None:
    kind, changes = CASES[case]
    family, fields = FAMILIES[case]
    model = make(family, fields | changes)
    stored = load_file(save(model, tmp_path / "theirs") / "model.safetensors")
    path = write(tmp_path / "model.gguf", kind, model, stored)
    recipe = Decoder(init=str(path))
    tokenizer_folder = byte_tokenizer(tmp_path / "tokenizer")
    trainee = recipe.make(
        Surroundings(
            tokenizer=Tokenizer.from_folder(tokenizer_folder),
            objective=NextToken(),
            length=8,
            seed=0,
            locate=str,
            counts=torch.zeros,
        )
    )
    assert all(p.requires_grad for p in trainee.network.parameters())
    recipe.save(tmp_path / "ours", trainee, tokenizer_folder)
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, stored[name], rtol=0.0, atol=1e-6)
    config, source = open_folder(tmp_path / "ours")
    network = load_network(config, source, dtype=torch.float32)
    ids = random_ids(1, 20)
    with torch.no_grad():
        logits = network.logits(network.hidden(dense_batch(ids)))
        torch.testing.assert_close(logits, model(ids).logits[0], rtol=0.0, atol=1e-4)


@pytest.mark.parametrize(
    ("objective", "attention", "mask_token", "block_size"),
    [
        ({"name": "next_token"}, {"causal"}, None, 0),
        ({"name": "masked_diffusion"}, {"bidirectional"}, 257, 0),
        ({"name": "block_diffusion", "block_size": 4}, {"bidirectional"}, 257, 4),
    ],
)
def test_a_model_says_what_it_was_trained_for(
    tmp_path: Path,
    objective: dict[str, Any],
    attention: set[str],
    mask_token: int | None,
    block_size: int,
) -> None:
    folder = trained(tmp_path, objective=objective)
    abilities = load(folder).abilities
    assert abilities.attention == attention
    assert (abilities.mask_token, abilities.block_size) == (mask_token, block_size)
    if attention == {"causal"}:
        assert anyorder.Engine(str(folder)).generate("a", max_new_tokens=1).tokens
    # Fine-tuned for something else, it can do that.
    data = memory_data(tmp_path)
    sizes = dict.fromkeys(("width", "layers", "heads", "kv_heads", "mlp_width", "context"))
    again = small_recipe(
        tmp_path / "again",
        model={**sizes, "init": str(folder)},
        data={"vocabulary": None},
        objective={"name": "masked_diffusion"},
        run={"steps": 1},
    )
    abilities = load(Trainer(again, data=data).run()).abilities
    assert abilities.attention == {"bidirectional"} and abilities.mask_token == 257


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (3, "anyorder in .*config.json must be an object, not 3"),
        ({"attention": ["sideways"]}, "attention must be a list of causal, bidirectional, got"),
        ({"attention": ["causal"], "mask_token": 258}, "mask_token must be below 258, got 258"),
    ],
)
def test_damaged_records_are_refused(tmp_path: Path, damage: Any, message: str) -> None:
    folder = trained(tmp_path, run={"steps": 1})
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "anyorder": damage}))
    with pytest.raises(CheckpointError, match=message):
        load(folder)
