"""Gemma 4: logits equal those of transformers, from the same checkpoint, cached and not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tests.model.checkpoints import VOCABULARY, random_ids
from tests.model.paged import Cached

from anyorder.core.batch import dense_batch
from anyorder.core.errors import CheckpointError
from anyorder.model.checkpoint import open_folder
from anyorder.model.loading import load_network
from anyorder.model.saving import stored_tensors

LENGTH = 24
FIELDS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 24,
    "max_position_embeddings": 64,
    "sliding_window": 7,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "hidden_size_per_layer_input": 0,
    "final_logit_softcapping": 5.0,
}
EXPERTS = {
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 3,
    "enable_moe_block": True,
    "num_experts": 5,
    "top_k_experts": 2,
    "moe_intermediate_size": 24,
}


def randomize(model: Any) -> Any:
    """Far from the usual small start; layer scales and all."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        is_scale = "norm" in name or name.endswith(("router.scale", "per_expert_scale"))
        parameter.normal_(1.0 if is_scale else 0.0, 0.2)
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.normal_(1.0, 0.3)
    return model


def reference(**fields: Any) -> Any:
    config = transformers.Gemma4TextConfig(**FIELDS, **fields, attn_implementation="eager")
    return randomize(transformers.Gemma4ForCausalLM(config).eval().requires_grad_(False))


@pytest.mark.parametrize("fields", [{}, EXPERTS], ids=["dense", "experts"])
@torch.inference_mode()
def test_logits(fields: dict[str, Any], tmp_path: Path) -> None:
    model = reference(**fields)
    model.save_pretrained(tmp_path)
    config, source = open_folder(tmp_path)
    network = load_network(config, source, dtype=torch.float32)
    ids_BT = random_ids(2, LENGTH)
    theirs_BTV = model(ids_BT).logits
    assert theirs_BTV.std() > 0.2, "flat logits would hide mistakes"
    ours = network.logits(network.hidden(dense_batch(ids_BT))).view(theirs_BTV.shape)
    torch.testing.assert_close(ours, theirs_BTV, atol=1e-4, rtol=0)
    cached = Cached(network, num_sequences=2, length=LENGTH)
    parts = [
        cached.run([(row, ids_BT[row, start:stop]) for row in range(2)])
        for start, stop in [(0, 9), (9, 16), *((at, at + 1) for at in range(16, LENGTH))]
    ]
    cached_BTV = torch.stack([torch.cat([part[row] for part in parts]) for row in range(2)])
    torch.testing.assert_close(cached_BTV, theirs_BTV, atol=1e-4, rtol=0)
    stored = load_file(tmp_path / "model.safetensors")
    again = stored_tensors(network)
    assert set(again) == set(stored)
    assert all(torch.equal(again[name], tensor) for name, tensor in stored.items())


def test_configurations_as_published(tmp_path: Path) -> None:
    """They say what global layers have by name instead of by layer."""
    reference(**EXPERTS).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    written = open_folder(tmp_path)[0]
    fields = json.loads(path.read_text())
    del fields["per_layer_config"]
    fields |= {"global_head_dim": 24, "num_global_key_value_heads": 3}
    path.write_text(json.dumps(fields))
    assert open_folder(tmp_path)[0] == written


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size_per_layer_input", 8),
        ("num_kv_shared_layers", 1),
        ("use_double_wide_mlp", True),
        ("use_bidirectional_attention", "all"),
    ],
)
def test_what_is_not_supported_is_refused(name: str, value: object, tmp_path: Path) -> None:
    reference().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(CheckpointError, match=name):
        open_folder(tmp_path)
