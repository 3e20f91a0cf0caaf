"""Saved models: read by the engine and by transformers with equal logits, for every family."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.model.checkpoints import FAMILIES, random_ids, reference, save
from tests.training.runs import byte_tokenizer

import anyorder
from anyorder.core.batch import dense_batch
from anyorder.core.errors import UserError
from anyorder.model.architecture import for_model_type
from anyorder.model.checkpoint import open_folder
from anyorder.model.fields import Fields
from anyorder.model.loading import load_network
from anyorder.model.saving import llama_fields, save_model, stored_tensors, whole_folder
from anyorder.model.transformer import Transformer


@pytest.mark.parametrize("case", FAMILIES)
def test_every_family_is_saved_as_it_was_stored(case: str, tmp_path: Path) -> None:
    folder = save(reference(case), tmp_path / case)
    config, source = open_folder(folder)
    network = load_network(config, source, dtype=torch.float32)
    saved = stored_tensors(network)
    original = {name: source.read(name) for name in source.names()}
    assert saved, "something is saved"
    for name, tensor in saved.items():
        torch.testing.assert_close(tensor, original[name].float(), rtol=0, atol=1e-6)
    tied = set(original) - set(saved)
    assert not tied or config.tied_embeddings


@pytest.mark.parametrize("tied", [True, False])
def test_the_engine_and_transformers_agree_on_a_new_model(tmp_path: Path, tied: bool) -> None:
    import transformers

    fields = llama_fields(
        vocabulary_size=258,
        width=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        mlp_width=48,
        context_length=64,
        tied_embeddings=tied,
        end_token=256,
    )
    config = for_model_type("llama").config(Fields(fields, "fields"))
    network = Transformer.random(config, seed=1)
    tokenizer = byte_tokenizer(tmp_path / "tokenizer")
    folder = tmp_path / "model"
    save_model(folder, network, fields, tokenizer)

    ids = random_ids(1, 20) % 258
    with torch.inference_mode():
        ours = network.logits(network.hidden(dense_batch(ids)))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        torch.testing.assert_close(theirs(ids).logits[0], ours, rtol=1e-4, atol=1e-4)
    engine = anyorder.Engine(str(folder), dtype="float32")
    score = engine.score(ids[0].tolist())
    expected = ours[:-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    assert score.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
    text = "It is a truth — universally"
    assert engine.tokenizer is not None
    read = transformers.AutoTokenizer.from_pretrained(folder)
    assert engine.tokenizer.encode(text) == read(text)["input_ids"]
    assert engine.tokenizer.end_tokens == {256}
    written = json.loads((folder / "config.json").read_text())
    assert written["torch_dtype"] == "float32"


def test_a_model_takes_the_place_of_another(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path / "tokenizer")
    fields = llama_fields(
        vocabulary_size=258,
        width=8,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        mlp_width=8,
        context_length=8,
        tied_embeddings=True,
        end_token=None,
    )
    config = for_model_type("llama").config(Fields(fields, "fields"))
    for seed in (1, 2):
        network = Transformer.random(config, seed=seed)
        save_model(tmp_path / "model", network, fields, tokenizer)
        weights = load_file(tmp_path / "model" / "model.safetensors")
        assert torch.equal(weights["model.embed_tokens.weight"], network.embedding.weight)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "tokenizer"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "place"
    with whole_folder(place) as partial:
        (partial / "a").write_text("old")
        assert not place.exists()
    with pytest.raises(KeyboardInterrupt), whole_folder(place) as partial:
        (partial / "a").write_text("new")
        raise KeyboardInterrupt
    assert (place / "a").read_text() == "old"
    with pytest.raises(UserError, match="No space left"), whole_folder(place) as partial:
        raise OSError(28, os.strerror(28))
    assert (place / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
    assert stat.S_ISDIR(place.stat().st_mode)
