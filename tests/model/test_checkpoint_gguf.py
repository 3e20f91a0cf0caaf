"""Networks from GGUF files, written with the `gguf` library as llama.cpp's converter does it.

Tensor names come from the library's own table; the changes of layout (rotary pairs side by side,
projections transposed or fused, experts stacked) are those of the converter.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file
from tests.model.checkpoints import CONTEXT, FAMILIES, make, random_ids, save

from anyorder.core.batch import dense_batch
from anyorder.core.errors import CheckpointError, UnknownName
from anyorder.model.checkpoint import open_gguf
from anyorder.model.gguf import GGUFFile
from anyorder.model.loading import load_network

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt_neox": ("gptneox", {}),
    "bloom": ("bloom", {}),
    "llama": ("llama", {}),
    "llama-wide-heads": ("llama", {}),
    "rope-llama3": ("llama", {}),
    "rope-linear": ("llama", {}),
    "rope-yarn": ("llama", {}),
    "mixtral": ("llama", {"sliding_window": None}),
    "qwen2": ("qwen2", {"use_sliding_window": False}),
    "qwen3": ("qwen3", {}),
    "qwen2_moe": ("qwen2moe", {"mlp_only_layers": []}),
    "qwen3_moe": ("qwen3moe", {"decoder_sparse_step": 1}),
    "olmoe": ("olmoe", {}),
    "gemma3": (
        "gemma3",
        {
            "num_hidden_layers": 6,
            "layer_types": None,
            "query_pre_attn_scalar": 16,
            "final_logit_softcapping": None,
        },
    ),
}


def side_by_side(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """The converter's `permute`."""
    halves = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def convert(kind: str, name: str, weight: torch.Tensor, config: Any) -> torch.Tensor:
    """One tensor in GGUF's layout."""
    if kind == "llama" and "q_proj" in name:
        return side_by_side(weight, config.num_attention_heads)
    if kind == "llama" and "k_proj" in name:
        return side_by_side(weight, config.num_key_value_heads)
    if kind == "gpt2" and re.search(r"(c_attn|c_proj|c_fc)\.weight", name):
        return weight.T
    if kind in ("gptneox", "bloom") and "query_key_value" in name:
        heads = weight.reshape(config.num_attention_heads, 3, -1, *weight.shape[1:])
        return torch.cat([heads[:, part].flatten(0, 1) for part in range(3)])
    if kind == "gemma3" and name.endswith("norm.weight"):
        return weight + 1
    return weight


def stack_experts(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts of a layer as one tensor, under the name that the converter gives them."""
    stacked: dict[str, list[torch.Tensor]] = {}
    for name in sorted(tensors):
        merged = re.sub(r"block_sparse_moe\.experts\.\d+\.", "feed_forward.experts.", name)
        merged = re.sub(r"mlp\.experts\.\d+\.", "mlp.experts.", merged)
        if "feed_forward" in merged:
            merged = merged.removeprefix("model.")
        stacked.setdefault(merged, []).append(tensors[name])
    return {
        name: torch.stack(parts) if ".experts." in name else parts[0]
        for name, parts in stacked.items()
    }


def write(path: Path, kind: str, model: Any, tensors: dict[str, torch.Tensor]) -> Path:
    """A GGUF file of float32 tensors."""
    config = model.config
    writer = gguf.GGUFWriter(path, kind)
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(getattr(config, "max_position_embeddings", CONTEXT))
    writer.add_embedding_length(config.hidden_size)
    inner = getattr(config, "intermediate_size", None)
    writer.add_feed_forward_length(inner or 4 * config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(5)
    for field in ("layer_norm_eps", "layer_norm_epsilon"):
        if hasattr(config, field):
            writer.add_layer_norm_eps(getattr(config, field))
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if hasattr(config, "num_key_value_heads"):
        writer.add_head_count_kv(config.num_key_value_heads)
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_rope_dimension_count(config.head_dim)
    if kind == "gptneox":
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads // 2)
        writer.add_parallel_residual(True)
    if "rope_theta" in rope:
        writer.add_rope_freq_base(rope["rope_theta"])
    if kind == "gemma3":
        writer.add_sliding_window(config.sliding_window)
    if getattr(config, "clip_qkv", None):
        writer.add_clamp_kqv(config.clip_qkv)
    write_scaling(writer, model, rope)
    if hasattr(config, "num_experts_per_tok"):
        writer.add_expert_count(len(next(w for n, w in tensors.items() if ".experts." in n)))
        writer.add_expert_used_count(config.num_experts_per_tok)
    if hasattr(config, "moe_intermediate_size"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if hasattr(config, "shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    architecture = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, weight in tensors.items():
        converted = convert(kind, name, weight, config)
        name = name.removeprefix("transformer.") if kind == "bloom" else name
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert gguf_name is not None, name
        writer.add_tensor(gguf_name, converted.squeeze().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_scaling(writer: gguf.GGUFWriter, model: Any, rope: dict[str, Any]) -> None:
    kind = rope.get("rope_type")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    elif kind == "llama3":
        # The converter stores by what each plain frequency is divided.
        scaled = model.model.rotary_emb.inv_freq
        plain = rope["rope_theta"] ** -(torch.arange(len(scaled)) / len(scaled))
        writer.add_tensor("rope_freqs.weight", (plain / scaled).numpy())


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_parity(case: str, tmp_path: Path) -> None:
    """Logits of the GGUF file equal those of the transformers model it was made from."""
    kind, changes = CASES[case]
    family, fields = FAMILIES[case]
    model = make(family, fields | changes)
    folder = save(model, tmp_path)
    tensors = stack_experts(load_file(folder / "model.safetensors"))
    with GGUFFile(write(tmp_path / "model.gguf", kind, model, tensors)) as file:
        config, source = open_gguf(file)
        network = load_network(config, source, dtype=torch.float32)
    assert config.end_tokens == {2, 5}
    ids_BT = random_ids(2, 30)
    logits = network.logits(network.hidden(dense_batch(ids_BT))).view(*ids_BT.shape, -1)
    torch.testing.assert_close(logits, model(ids_BT).logits, atol=1e-4, rtol=0)


class FakeFile:
    """As much of a GGUF file as opening looks at."""

    def __init__(self, **metadata: Any) -> None:
        self.metadata = {key.replace("__", "."): value for key, value in metadata.items()}
        self.tensors: dict[str, Any] = {}

    def read(self, name: str, *, out: torch.Tensor | None = None) -> torch.Tensor:
        raise AssertionError(f"nothing asks for {name}")


def test_unknown_architecture() -> None:
    with pytest.raises(UnknownName, match=r"unknown GGUF architecture 'mamba'.*gpt2.*qwen3moe"):
        open_gguf(FakeFile(general__architecture="mamba"))


def test_missing_metadata() -> None:
    with pytest.raises(CheckpointError, match=r"lacks the field .context_length."):
        open_gguf(FakeFile(general__architecture="llama", llama__block_count=2))
    with pytest.raises(CheckpointError, match=r"lacks the field 'general\.architecture'"):
        open_gguf(FakeFile())
