"""Folders of additions, as PEFT writes them, against PEFT."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.checkpoints import random_ids, reference, save
from tests.model.test_checkpoint_gguf import CASES, write
from tests.training.runs import byte_tokenizer

from anyorder import Engine
from anyorder.core.batch import dense_batch
from anyorder.core.errors import CheckpointError
from anyorder.core.request import Request
from anyorder.model.checkpoint import open_gguf
from anyorder.model.gguf import GGUFFile
from anyorder.model.loaded import load
from anyorder.model.loading import load_network
from anyorder.model.lora import add, open_adapter
from anyorder.model.transformer import Transformer

TARGETS = {
    "llama": ["q_proj", "k_proj", "up_proj"],
    "llama-biased": ["q_proj", "v_proj", "o_proj", "down_proj", "gate_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gpt_neox": ["query_key_value", "dense", "dense_4h_to_h"],
}


@functools.cache
def checkpoint(case: str) -> Any:
    return reference(case)


def adapted(folder: Path, case: str, **changes: Any) -> Any:
    """PEFT's own model, whose base and additions lie in `folder`."""
    import peft

    base = save(checkpoint(case), folder / "base")
    byte_tokenizer(folder / "words")
    for path in (folder / "words").iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    model = copy.deepcopy(checkpoint(case))
    model.name_or_path = str(base)
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS[case], **changes)
    model = peft.get_peft_model(model, config)
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                noise = torch.rand(parameter.shape, generator=rng)
                is_length = "magnitude" in name
                parameter.copy_(parameter * (0.5 + noise) if is_length else (noise - 0.5) * 0.6)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder / "adapter")
    return model.eval()


def change(folder: Path, **fields: Any) -> None:
    path = folder / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.filterwarnings("ignore")  # PEFT's own
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True},
        {
            "rank_pattern": {"q_proj": 2, "h.0.attn.c_attn": 3, "dense": 2},
            "alpha_pattern": {"layers.1.self_attn.v_proj": 20, "c_proj": 1, "query_key_value": 9},
        },
    ],
    ids=["lora", "dora", "rslora", "patterns"],
)
@pytest.mark.parametrize("case", list(TARGETS))
def test_computes_what_peft_does(tmp_path: Path, case: str, changes: dict[str, Any]) -> None:
    theirs = adapted(tmp_path, case, **changes)
    network = load(tmp_path / "adapter", dtype="float32", device="cpu").network
    assert isinstance(network, Transformer)
    ids = random_ids(2, 11)
    with torch.no_grad():
        logits, plain = theirs(ids).logits, checkpoint(case)(ids).logits
        ours = network.logits(network.hidden(dense_batch(ids))).view_as(logits)
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4)
    assert (logits - plain).abs().max() > 0.1


@pytest.mark.filterwarnings("ignore")
def test_adds_to_a_gguf_file_whose_rows_lie_otherwise(tmp_path: Path) -> None:
    theirs = adapted(tmp_path, "llama", use_dora=True)
    plain = checkpoint("llama")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    path = write(tmp_path / "base.gguf", CASES["llama"][0], plain, tensors)
    with GGUFFile(path) as file:
        config, source = open_gguf(file)
        network = load_network(config, source, dtype=torch.float32)
    adapter = open_adapter(tmp_path / "adapter")
    assert adapter is not None and open_adapter(tmp_path / "base") is None
    add(adapter, network)
    ids = random_ids(2, 11)
    with torch.no_grad():
        logits = theirs(ids).logits
        ours = network.logits(network.hidden(dense_batch(ids))).view_as(logits)
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_is_a_model_like_any_other(tmp_path: Path) -> None:
    theirs = adapted(tmp_path, "llama-biased")
    whole = save(theirs.merge_and_unload(), tmp_path / "merged")
    for path in (tmp_path / "words").iterdir():
        (whole / path.name).write_bytes(path.read_bytes())
    for more in ({}, {"method": "beam_search"}, {"temperature": 1.0, "seed": 3}):
        fields: dict[str, Any] = {"max_new_tokens": 8, "ignore_end": True, **more}
        found, want = (
            Engine(str(folder), dtype="float32", device="cpu").generate(
                Request(prompt="ab", **fields)
            )
            for folder in (tmp_path / "adapter", whole)
        )
        assert found.tokens == want.tokens
    draft = Engine(str(whole), draft=str(tmp_path / "adapter"), dtype="float32", device="cpu")
    assert draft.roles["draft"].abilities.name == "adapter"
    engine = Engine(str(tmp_path / "adapter"), dtype="float32", device="cpu", quantize="int8")
    assert engine.generate(Request(prompt="ab", max_new_tokens=3, ignore_end=True)).tokens


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_added_is_refused(tmp_path: Path) -> None:
    adapted(tmp_path, "llama-biased")
    folder, base = tmp_path / "adapter", str(tmp_path / "base")
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"peft_type": "IA3"}, "kind 'IA3'; supported is 'LORA'"),
        ({"modules_to_save": ["lm_head"]}, "sets modules_to_save, which is not supported"),
        ({"bias": "all"}, "bias 'all', and only 'none'"),
        ({"base_model_name_or_path": "no-such-model"}, "'no-such-model', which cannot be had"),
        ({"base_model_name_or_path": str(folder)}, "which is an adapter itself"),
        ({"rank_pattern": {"q_proj(": 2}}, r"'q_proj\(' in rank_pattern .* no regular expression"),
        ({"r": 5}, r"shapes A \[4, \d+\], B \[\d+, 4\], but .* call for A \[5, "),
        ({"use_dora": True}, r"call for A .*, length \["),
    ]
    for fields, message in cases:
        before = (folder / "adapter_config.json").read_text()
        change(tmp_path, **fields)
        with pytest.raises(CheckpointError, match=message):
            load(folder, device="cpu")
        (folder / "adapter_config.json").write_text(before)
    first = next(iter(tensors))
    for name, message in {
        "base_model.model.lm_head.weight": "no addition to a matrix",
        first.replace("layers.0", "layers.9"): f"which {base} does not have",
    }.items():
        save_file({**tensors, name: tensors[first].clone()}, weights)
        with pytest.raises(CheckpointError, match=message):
            load(folder, device="cpu")
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors file"):
        load(folder, device="cpu")
