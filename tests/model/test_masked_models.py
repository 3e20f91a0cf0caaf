"""BERT and its relatives: logits equal those of transformers, from the same checkpoint."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from anyorder.core.batch import dense_batch
from anyorder.core.errors import CheckpointError
from anyorder.model.checkpoint import open_folder
from anyorder.model.loading import load_network
from anyorder.model.saving import stored_tensors
from anyorder.model.transformer import Transformer

VOCABULARY = 96
LENGTH = 40
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
}
_MODERN = _SIZES | {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "eos_token_id": 2,
    "local_attention": 10,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", _SIZES),
    "bert-tanh": ("Bert", _SIZES | {"hidden_act": "gelu_new", "type_vocab_size": 3}),
    "roberta": ("Roberta", _SIZES | {"type_vocab_size": 1}),
    "roberta-relu": ("Roberta", _SIZES | {"hidden_act": "relu", "pad_token_id": 4}),
    "xlm-roberta": ("XLMRoberta", _SIZES),
    "modernbert": ("ModernBert", _MODERN),
    "modernbert-biased": (
        "ModernBert",
        _MODERN
        | {
            "attention_bias": True,
            "mlp_bias": True,
            "norm_bias": True,
            "classifier_bias": True,
            "classifier_activation": "silu",
            "decoder_bias": False,
            "tie_word_embeddings": False,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 300.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
            },
        },
    ),
}


@functools.cache
def reference(case: str) -> Any:
    """A model of transformers with random weights, far from their usual small start."""
    family, fields = FAMILIES[case]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**fields, attn_implementation="eager")
    model = getattr(transformers, f"{family}ForMaskedLM")(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        is_scale = "norm" in name.lower() and name.endswith("weight")
        parameter.normal_(1.0 if is_scale else 0.0, 0.2)
    return model


def load(folder: Path) -> Transformer:
    config, source = open_folder(folder)
    return load_network(config, source, dtype=torch.float32)


@functools.cache
def ours(case: str) -> Transformer:
    """The same checkpoint, loaded here."""
    with tempfile.TemporaryDirectory() as folder:
        reference(case).save_pretrained(folder)
        return load(Path(folder))


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(5, VOCABULARY, shape, generator=torch.Generator().manual_seed(1))


def logits(network: Transformer, ids_BT: torch.Tensor) -> torch.Tensor:
    visible_1TT = torch.ones(1, ids_BT.shape[1], ids_BT.shape[1], dtype=torch.bool)
    hidden = network.hidden(dense_batch(ids_BT, visible_1TT))
    return network.logits(hidden).view(*ids_BT.shape, -1)


@pytest.mark.parametrize("case", FAMILIES)
@torch.inference_mode()
def test_logits(case: str) -> None:
    """Of a text longer than the local layers' windows."""
    ids_BT = random_ids(2, LENGTH)
    theirs = reference(case)(ids_BT).logits
    assert theirs.std() > 0.2, "flat logits would hide mistakes"
    torch.testing.assert_close(logits(ours(case), ids_BT), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", FAMILIES)
def test_saved_as_it_was_stored(case: str, tmp_path: Path) -> None:
    reference(case).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    again = stored_tensors(ours(case))
    assert {name: tensor.shape for name, tensor in stored.items()} == {
        name: tensor.shape for name, tensor in again.items()
    }
    assert all(torch.equal(again[name], tensor) for name, tensor in stored.items())


@torch.inference_mode()
def test_first_checkpoints_of_bert(tmp_path: Path) -> None:
    """Norms have a gamma and a beta there, and heads that nothing reads lie beside them."""
    reference("bert").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }
    renamed["bert.pooler.dense.weight"] = torch.zeros(48, 48)
    renamed["cls.seq_relationship.bias"] = torch.zeros(2)
    renamed["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    renamed = {name: tensor.clone() for name, tensor in renamed.items()}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ids_BT = random_ids(1, 9)
    assert torch.equal(logits(load(tmp_path), ids_BT), logits(ours("bert"), ids_BT))


@pytest.mark.parametrize(
    ("case", "field", "value"),
    [
        ("bert", "is_decoder", True),
        ("bert", "position_embedding_type", "relative_key"),
        ("bert", "tie_word_embeddings", False),
        ("roberta", "pad_token_id", 63),
        ("modernbert", "layer_types", ["linear_attention"] * 4),
    ],
)
def test_what_is_not_supported_is_refused(
    case: str, field: str, value: object, tmp_path: Path
) -> None:
    reference(case).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(CheckpointError, match=r"support|position"):
        load(tmp_path)


def test_first_configurations_of_modernbert(tmp_path: Path) -> None:
    """Which layers are local, and the bases of their rotary positions, were numbers by name."""
    reference("modernbert").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    new = open_folder(tmp_path)[0]
    del fields["layer_types"], fields["rope_parameters"]
    fields |= {
        "global_attn_every_n_layers": 3,
        "local_rope_theta": 10_000.0,
        "global_rope_theta": 160_000.0,
    }
    path.write_text(json.dumps(fields))
    assert open_folder(tmp_path)[0] == new
    assert [layer.window for layer in new.layers] == [None, 6, 6, None]
