"""Published diffusion checkpoints: logits equal a naive twin's, abilities what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tests.model import published
from tests.model.published import EXPERTS, LAYOUTS, MASK, VOCABULARY

from anyorder.core.batch import AttentionGroup, PackedBatch
from anyorder.core.errors import CheckpointError
from anyorder.model.architecture import for_model_type
from anyorder.model.checkpoint import open_folder, open_gguf
from anyorder.model.config import Experts, ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.gguf import GGUFFile
from anyorder.model.loaded import abilities_of
from anyorder.model.loading import load_network
from anyorder.model.saving import stored_tensors
from anyorder.model.transformer import Transformer


def logits(network: Transformer, ids: list[int], visible: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(len(ids))
    group = AttentionGroup(
        first_row=0,
        num_requests=1,
        num_queries=len(ids),
        pages_RP=None,
        query_positions_RQ=positions[None],
        key_positions_RK=positions[None],
        visible_RQK=visible[None],
    )
    batch = PackedBatch(
        tokens_N=torch.tensor(ids), positions_N=positions, slots_N=None, groups=(group,)
    )
    return network.logits(network.hidden(batch, None))


@pytest.mark.parametrize("name", LAYOUTS)
@torch.no_grad()
def test_logits_equal_the_twins(name: str, tmp_path: Path) -> None:
    config, source = open_folder(published.write(name, tmp_path))
    network = load_network(config, source, dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(VOCABULARY, (23,), generator=generator).tolist()
    for visible in (torch.ones(23, 23, dtype=torch.bool), published.in_blocks(23, 8)):
        want = published.twin(name, ids, visible)
        assert want.std() > 0.3, "flat logits would hide mistakes"
        torch.testing.assert_close(logits(network, ids, visible).double(), want, atol=1e-4, rtol=0)
    # What was read is what would be written.
    tensors = stored_tensors(network)
    assert tensors.keys() == published.weights(name).keys()
    assert all(torch.equal(tensors[key], value) for key, value in published.weights(name).items())


@pytest.mark.parametrize("name", ["llada", "dream"])
@torch.no_grad()
def test_gguf_files_of_them(name: str, tmp_path: Path) -> None:
    """As llama.cpp's converter writes them: LLaDA's rotary pairs side by side, Dream's apart."""
    c, dense = LAYOUTS[name], name == "llada"
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", name)
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(4 if dense else 2)
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_rope_freq_base(c["rope_theta"])
    writer.add_rope_dimension_count(8)
    writer.add_mask_token_id(MASK)
    writer.add_eos_token_id(published.END)
    parts = {
        "wte": "token_embd",
        "embed_tokens": "token_embd",
        "ln_f": "output_norm",
        "norm": "output_norm",
        "lm_head": "output",
        **dict.fromkeys(("attn_norm", "input_layernorm"), "attn_norm"),
        **dict.fromkeys(("ff_norm", "post_attention_layernorm"), "ffn_norm"),
        **dict.fromkeys(("attn_out", "o_proj"), "attn_output"),
        **dict.fromkeys(("ff_proj", "gate_proj"), "ffn_gate"),
        **{"up_proj": "ffn_up", "down_proj": "ffn_down"},
        **{f"{part}_proj": f"attn_{part}" for part in "qkv"},
    }
    for tensor, values in published.weights(name).items():
        *stem, part, kind = tensor.split(".")
        layer = next((piece for piece in stem if piece.isdigit()), None)
        found = parts.get(part) or ("output" if layer is None else "ffn_down")
        if dense and part in ("q_proj", "k_proj"):
            values = values.reshape(4, 2, 4, -1).swapaxes(1, 2).reshape(values.shape)
        stored = f"{found}.{kind}" if layer is None else f"blk.{layer}.{found}.{kind}"
        writer.add_tensor(stored, values.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    config, source = open_gguf(GGUFFile(tmp_path / "model.gguf"))
    network = load_network(config, source, dtype=torch.float32)
    abilities = abilities_of(name, config, None)
    assert abilities.mask_token == MASK and abilities.token_shift == (not dense)
    ids, visible = list(range(3, 20)), torch.ones(17, 17, dtype=torch.bool)
    want = published.twin(name, ids, visible)
    torch.testing.assert_close(logits(network, ids, visible).double(), want, atol=1e-4, rtol=0)


def config_of(name: str, **changes: Any) -> ModelConfig:
    fields = {key: value for key, value in (LAYOUTS[name] | changes).items() if value != "absent"}
    return for_model_type(fields["model_type"]).config(Fields(fields, "config.json"))


@pytest.mark.parametrize(
    ("name", "block_size", "shift"),
    [
        ("llada", 0, False),
        ("llada_moe", 0, False),
        ("llada2_moe", 8, False),
        ("dream", 0, True),
        ("sdar", 4, False),
        ("sdar_moe", 8, False),
        ("fast_dllm_qwen", 8, True),
    ],
)
def test_abilities_are_read_from_the_checkpoint(name: str, block_size: int, shift: bool) -> None:
    abilities = abilities_of(name, config_of(name), None)
    assert abilities.attention == {"bidirectional"}
    assert abilities.mask_token == MASK and abilities.end_tokens == {published.END}
    assert (abilities.block_size, abilities.token_shift) == (block_size, shift)
    assert abilities.context_length == 256


@pytest.mark.parametrize(
    ("name", "mask_token"),
    [
        ("llada", 126336),
        ("llada_moe", 156895),
        ("llada2_moe", 156895),
        ("dream", 151666),
        ("sdar", 151669),
        ("sdar_moe", 151669),
        ("fast_dllm_qwen", 151665),
    ],
)
def test_what_published_checkpoints_do_not_say(name: str, mask_token: int) -> None:
    large: dict[str, Any] = {"vocab_size": 160_000, "mask_token_id": "absent"}
    if name == "llada":
        large["embedding_size"] = 160_000
    config = config_of(name, **large, block_size="absent", bd_size="absent")
    assert config.mask_token == mask_token
    sizes = {"llada2_moe": 32, "sdar": 4, "sdar_moe": 4, "fast_dllm_qwen": 32}
    assert config.block_size == sizes.get(name, 0)
    with pytest.raises(CheckpointError, match=f"must be below {VOCABULARY}, got {mask_token}"):
        config_of(name, mask_token_id="absent")


def test_the_mask_token_of_converted_models_is_the_tokenizers() -> None:
    config = config_of("a2d_qwen3")
    assert config.mask_token is None and config.block_size == 0 and not config.token_shift
    assert config.attention == {"bidirectional"}


def test_the_renamed_mixture_is_the_same() -> None:
    assert config_of("llada_moe", model_type="lladamoe") == config_of("llada_moe")


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("llada", "block_type", "sequential"),
        ("llada", "layer_norm_type", "default"),
        ("llada", "rope", False),
        ("llada", "alibi", True),
        ("llada", "attention_layer_norm", True),
        ("llada", "input_emb_norm", True),
        ("llada", "scale_logits", True),
        ("llada", "include_bias", True),
        ("llada_moe", "moe_router_score_function", "sigmoid"),
        ("llada_moe", "moe_router_enable_expert_bias", True),
        ("llada_moe", "moe_layer_freq", [1]),
        ("llada2_moe", "score_function", "softmax"),
    ],
)
def test_what_is_not_honoured_is_refused(name: str, field: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=field) as caught:
        config_of(name, **{field: value})
    assert "\n" not in str(caught.value)


def test_groups_of_experts_must_fit() -> None:
    for groups, visited in ((3, 1), (4, 5), (4, 1)):
        with pytest.raises(CheckpointError, match="groups"):
            Experts(
                num=8,
                per_token=3,
                width=4,
                normalize=True,
                num_groups=groups,
                groups_per_token=visited,
            )


def test_every_family_with_experts_is_tried() -> None:
    assert {"llada_moe", "llada2_moe", "sdar_moe"} == EXPERTS
