"""Folders of safetensors: whole, sharded, damaged and hostile ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.checkpoints import random_ids, reference, save

from anyorder.core.batch import dense_batch
from anyorder.core.errors import CheckpointError, UnknownName
from anyorder.model.checkpoint import open_folder
from anyorder.model.loading import load_network
from anyorder.model.transformer import Transformer

INDEX = "model.safetensors.index.json"
QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound checkpoint; tests change copies."""
    return save(reference("llama"), tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Transformer:
    config, source = open_folder(folder)
    return load_network(config, source, dtype=dtype)


def edit_json(path: Path, **changes: object) -> None:
    data: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps(data | changes))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def shard(folder: Path) -> dict[str, str]:
    """Split the file in two and write the index; where every tensor went."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    file_of = {name: f"part-{at * 2 // len(names)}.safetensors" for at, name in enumerate(names)}
    for file in set(file_of.values()):
        save_file({name: tensors[name] for name in names if file_of[name] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": file_of}))
    return file_of


# ------------------------------------------------------------------------------------ sound ones
@torch.inference_mode()
def test_shards_equal_one_file(whole: Path, folder: Path) -> None:
    assert len(set(shard(folder).values())) == 2
    batch = dense_batch(random_ids(1, 8))
    assert torch.equal(load(folder).hidden(batch), load(whole).hidden(batch))


def test_progress_and_type(folder: Path) -> None:
    config, source = open_folder(folder)
    seen: list[tuple[int, int]] = []
    network = load_network(
        config,
        source,
        dtype=torch.bfloat16,
        progress=lambda done, total: seen.append((done, total)),
    )
    parameters = list(network.parameters())
    assert seen == [(done, len(parameters)) for done in range(1, len(parameters) + 1)]
    assert {(p.dtype, p.device.type, p.requires_grad) for p in parameters} == {
        (torch.bfloat16, "cpu", False)
    }
    assert not network.training


def test_end_tokens_of_both_files(folder: Path) -> None:
    edit_json(folder / "config.json", eos_token_id=2)
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert open_folder(folder)[0].end_tokens == {2, 7, 9}


def test_redundant_tensors_are_ignored(folder: Path) -> None:
    """Old checkpoints hold rotary frequencies, and a head although it is tied."""
    edit_tensors(
        folder,
        lambda tensors: tensors.update(
            {
                "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
                "lm_head.weight": tensors["model.embed_tokens.weight"].clone(),
            }
        ),
    )
    load(folder)


def test_names_without_prefix(folder: Path) -> None:
    """A base model saved alone leaves "model." off."""
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(bare, folder / "model.safetensors")
    load(folder)


def test_remote_code_is_not_even_looked_at(folder: Path) -> None:
    (folder / "evil.py").write_text("raise SystemExit('this ran')")
    edit_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})
    load(folder)


# ------------------------------------------------------------------------------------- bad tensors
def test_missing_tensor(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop(QUERY))
    with pytest.raises(CheckpointError, match=rf"lacks tensor '{QUERY}'"):
        load(folder)


def test_missing_embedding(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    with pytest.raises(CheckpointError, match=r"lacks the token embedding model\.embed_tokens"):
        load(folder)


def test_wrong_shape(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({QUERY: torch.zeros(48, 40)}))
    message = rf"'{QUERY}' has shape \[48, 40\], but the configuration calls for \[48, 48\]"
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_surplus_tensor(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({"model.layers.9.x.bias": torch.ones(1)}))
    with pytest.raises(CheckpointError, match=r"1 tensors that llama does not have.*layers\.9\.x"):
        load(folder)


def test_unexpected_type(folder: Path) -> None:
    edit_tensors(
        folder, lambda tensors: tensors.update({QUERY: torch.zeros(48, 48, dtype=torch.int8)})
    )
    with pytest.raises(CheckpointError, match=rf"'{QUERY}'.*type I8; supported are F64, F32"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_file(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="is not a complete safetensors file"):
        load(folder)


def test_hostile_header_length(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="is not a complete safetensors file"):
        load(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_pickle_is_refused(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(CheckpointError, match=rf"pickled weights \({name}\), which can run code"):
        load(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors file"):
        load(folder)


def test_several_files_without_index(folder: Path) -> None:
    shard(folder)
    (folder / INDEX).unlink()
    with pytest.raises(CheckpointError, match=r"holds 2 \.safetensors files and no model"):
        load(folder)


# --------------------------------------------------------------------------------------- bad index
@pytest.mark.parametrize(
    "file", ["../other.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\x", 7, "c\0"]
)
def test_index_may_not_leave_the_folder(folder: Path, file: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {QUERY: file}}))
    with pytest.raises(CheckpointError, match="only files of the same folder are allowed"):
        load(folder)


def test_index_may_not_name_pickles(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {QUERY: "pytorch_model.bin"}}))
    with pytest.raises(CheckpointError, match=r"only \.safetensors are allowed"):
        load(folder)


def test_index_names_a_missing_file(folder: Path) -> None:
    file = shard(folder)[QUERY]
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=rf"{file} is missing"):
        load(folder)


def test_index_promises_too_much(folder: Path) -> None:
    shard(folder)
    path = folder / "part-1.safetensors"
    tensors = load_file(path)
    tensors.pop(QUERY)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=rf"promises tensor '{QUERY}' in part-1"):
        load(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_malformed_index(folder: Path, text: str) -> None:
    (folder / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        load(folder)


# ------------------------------------------------------------------------------- bad configuration
@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000])
def test_malformed_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json (is not valid|must hold)"):
        load(folder)


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load(folder)
    (folder / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot read .*config\.json"):
        load(folder)


def test_unknown_model_type(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="lama")
    with pytest.raises(UnknownName, match=r"unknown model_type 'lama'; did you mean 'llama'"):
        load(folder)


def test_quantised_safetensors(folder: Path) -> None:
    edit_json(folder / "config.json", quantization_config={"quant_method": "gptq"})
    with pytest.raises(CheckpointError, match="quantised safetensors, which are not supported"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "lacks the field 'hidden_size'"),
        ({"hidden_size": "48"}, "'hidden_size' in .* a whole number .* got '48'"),
        ({"hidden_size": True}, "'hidden_size' in .* a whole number"),
        ({"hidden_size": 10**12}, "'hidden_size' in .* a whole number from 0 to 2"),
        ({"num_attention_heads": 0}, "'num_attention_heads' in .* at least 1, got 0"),
        ({"num_attention_heads": 7}, "7 heads cannot share 2 key/value heads evenly"),
        ({"num_attention_heads": 64, "head_dim": None}, "64 heads, too many for a width of 48"),
        ({"num_hidden_layers": 0}, "no layers"),
        ({"num_hidden_layers": 10**6}, "'num_hidden_layers' in .* at most 1000"),
        ({"rms_norm_eps": "small"}, "'rms_norm_eps' in .* a number"),
        ({"tie_word_embeddings": 1}, "'tie_word_embeddings' in .* true or false"),
        ({"hidden_act": "tanh"}, "'hidden_act' in .* one of gelu, "),
        ({"hidden_act": 3}, "'hidden_act' in .* a text"),
        ({"eos_token_id": [1, "x"]}, "'eos_token_id' in .* a whole number or a list"),
        ({"rope_parameters": 5}, "'rope_parameters' in .* an object"),
        ({"rope_parameters": {"rope_type": "su"}}, "rope scaling 'su' in .* is not supported"),
        ({"rope_parameters": {"rope_theta": 0}}, "'rope_theta' in .* a number above 1"),
        ({"rope_parameters": {"rope_type": "linear", "factor": -1}}, "'factor' in .* above 0"),
        ({"rope_parameters": {"partial_rotary_factor": 2}}, "rotate 16 of 8 dimensions"),
        ({"rope_parameters": {"rope_type": "divisors", "divisors": [1]}}, "must be 4"),
        ({"rope_parameters": {"rope_type": "divisors", "divisors": "x"}}, "a list of numbers"),
        ({"sliding_window": 4, "layer_types": ["full_attention"]}, "a list of 3 texts"),
        ({"sliding_window": 4, "layer_types": ["a", "b", "c"]}, "only full and sliding"),
        ({"num_local_experts": 2, "num_experts_per_tok": 3}, "visit 3 experts, but there are 2"),
    ],
)
def test_bad_field(folder: Path, changes: dict[str, object], message: str) -> None:
    edit_json(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
