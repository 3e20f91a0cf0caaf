"""Families: how they are found, and what only some configurations of them say."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from tests.model.checkpoints import random_ids, reference

from anyorder.core import lookup
from anyorder.core.batch import dense_batch
from anyorder.core.errors import CheckpointError, UnknownName
from anyorder.model.architecture import architecture, architectures, for_gguf_type, for_model_type
from anyorder.model.config import LayerConfig, ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.transformer import Transformer


def config_of(model_type: str, **fields: Any) -> ModelConfig:
    return for_model_type(model_type).config(Fields(fields, "config.json"))


def test_every_file_is_found() -> None:
    assert set(architectures()) == set(lookup.names("model/architectures"))
    for name, family in architectures().items():
        assert architecture(name) is family
        assert all(for_model_type(kind) is family for kind in family.model_types)
        assert all(for_gguf_type(kind) is family for kind in family.gguf_types)
        # T5's config.json tells which of two layouts its checkpoint has.
        reads = family.model_types or family.marks or name == "t5_gated"
        assert reads, f"{name} reads no checkpoint"


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(UnknownName, match=r"model_types: Dream, .*gpt2, .*sdar, .*t5"):
        for_model_type("xlnet")
    with pytest.raises(UnknownName, match=r"did you mean 'gptneox'"):
        for_gguf_type("gpt_neox")


def test_looking_up_does_not_import_torch() -> None:
    code = (
        "import sys; from anyorder.model.architecture import for_model_type;"
        "for_model_type('llama'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@torch.inference_mode()
def test_gpt3_alternates_dense_and_banded_layers() -> None:
    """Against attention written out: softmax over a dense or banded lower triangle."""
    band, length = 4, 11
    config = config_of(
        "gpt3", vocab_size=50, n_embd=16, n_layer=4, n_head=2, n_positions=16, attention_band=band
    )
    network = Transformer.random(config, seed=3)
    ids = random_ids(1, length) % 50
    x = network.embedding(ids[0]) + network.positions(torch.arange(length))
    for index, layer in enumerate(network.layers):
        ahead = torch.arange(length)[:, None] - torch.arange(length)[None, :]
        seen = (ahead >= 0) & ((ahead < band) if index % 2 else True)
        queries, keys, values = layer.attention.qkv(layer.attention_norm(x)).chunk(3, dim=-1)
        heads = []
        for part in (slice(0, 8), slice(8, 16)):
            scores = queries[:, part] @ keys[:, part].T / 8**0.5
            heads.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ values[:, part])
        x = x + layer.attention.out(torch.cat(heads, dim=-1))
        inner = torch.nn.functional.gelu(layer.mlp.up(layer.mlp_norm(x)), approximate="tanh")
        x = x + layer.mlp.down(inner)
    torch.testing.assert_close(network.hidden(dense_batch(ids)), network.final_norm(x))
    assert [layer.window for layer in config.layers] == [None, band, None, band]


def test_gemma3_reads_its_old_form() -> None:
    """Before transformers 5 the two bases lay side by side, and the pattern was a number."""
    new = reference("gemma3").config.to_dict()
    kinds = new.pop("layer_types")
    new.pop("rope_parameters")
    old = new | {
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 2,
    }
    by_kind = {
        "full_attention": old["rope_scaling"] | {"rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    }
    expected = new | {"layer_types": kinds, "rope_parameters": by_kind}
    assert config_of(**old).layers == config_of(**expected).layers


def test_qwen2_reads_its_old_form() -> None:
    """Before `layer_types`, windows began at layer `max_window_layers`."""
    fields = reference("qwen2").config.to_dict()
    expected = config_of(**fields).layers
    assert [layer.window for layer in expected] == [None, 7, 7]
    fields.pop("layer_types")
    assert config_of(**fields).layers == expected
    fields["use_sliding_window"] = False
    assert {layer.window for layer in config_of(**fields).layers} == {None}


def test_neox_reads_its_old_form() -> None:
    fields = reference("gpt_neox").config.to_dict()
    fields.pop("rope_parameters")
    old = config_of(**fields, rotary_pct=0.5, rotary_emb_base=10_000)
    assert old == config_of(**reference("gpt_neox").config.to_dict())


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("gpt2", {"n_head": 64}, "64 heads, too many for a width of 48"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine = False"),
        (
            "bloom",
            {"apply_residual_connection_post_layernorm": True},
            "apply_residual_connection_post_layernorm = True",
        ),
        ("phi3", {"rope_scaling": {"type": "longrope"}}, "rope scaling 'longrope'"),
    ],
)
def test_variants_that_are_refused(case: str, changes: dict[str, Any], message: str) -> None:
    fields = reference(case).config.to_dict()
    if "rope_scaling" in changes:
        fields.pop("rope_parameters")
    with pytest.raises(CheckpointError, match=message):
        config_of(**(fields | changes))


def test_random_networks() -> None:
    """The same for the same seed, another for another; every parameter differs from its start."""
    layer = LayerConfig(attention_scale=0.25)
    config = config_of(**reference("qwen2_moe").config.to_dict())
    assert config.layers[0] != layer
    one, same, other = (Transformer.random(config, seed=seed) for seed in (1, 1, 2))
    for (name, a), b, c in zip(
        one.named_parameters(), same.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(a, b) and not torch.equal(a, c), name
        assert a.std() > 0.05 and not a.requires_grad, name
