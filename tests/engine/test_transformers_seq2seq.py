"""Encoder-decoders equal transformers: logits of packed pairs, and `generate` token for token."""

from __future__ import annotations

import functools
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.checkpoints import VOCABULARY
from tests.model.seq2seq import END, FAMILIES, PAD, reference

from anyorder.core.batch import CrossMemory, dense_batch
from anyorder.core.errors import CheckpointError
from anyorder.core.method import TextRules
from anyorder.core.packing import document_positions, same_document
from anyorder.core.request import Request
from anyorder.engine.engine import Engine
from anyorder.model.checkpoint import open_folder
from anyorder.model.encoder_decoder import EncoderDecoder
from anyorder.model.loaded import LoadedModel, abilities_of
from anyorder.model.loading import load_network
from anyorder.model.saving import stored_tensors

NEW = 12


def saved(case: str, folder: Path) -> Path:
    """The checkpoint of a case, with the rules for its texts."""
    model = reference(case)
    for name in ("forced_bos_token_id", "forced_eos_token_id", "bad_words_ids"):
        setattr(model.generation_config, name, FAMILIES[case][1].get(name))
    model.save_pretrained(folder)
    if case == "t5-1.1":  # as published: with a head of its own, which transformers 5 ties
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = model.lm_head.weight.clone()
        save_file(tensors, folder / "model.safetensors")
        fields = json.loads((folder / "config.json").read_text())
        del fields["scale_decoder_outputs"]
        fields["tie_word_embeddings"] = False
        (folder / "config.json").write_text(json.dumps(fields))
    return folder


@functools.cache
def ours(case: str) -> LoadedModel:
    with tempfile.TemporaryDirectory() as folder:
        config, tensors = open_folder(saved(case, Path(folder)))
        network = load_network(config, tensors, dtype=torch.float32)
    return LoadedModel(network=network, abilities=abilities_of(case, config, None))


def ids(length: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, VOCABULARY, (length,), generator=generator)


LENGTHS = ((9, 7), (23, 30), (4, 12))


def pairs() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(ids(s, 10 * s), ids(t, 10 * t + 1)) for s, t in LENGTHS]


@torch.inference_mode()
def expected(case: str) -> list[torch.Tensor]:
    """transformers' logits of a batch padded on the right."""
    sources, targets = zip(*pairs(), strict=True)
    padded = [
        torch.nn.utils.rnn.pad_sequence(list(side), batch_first=True, padding_value=PAD)
        for side in (sources, targets)
    ]
    real = (torch.arange(padded[0].shape[1]) < torch.tensor([[s] for s, _ in LENGTHS])).long()
    logits = reference(case)(padded[0], attention_mask=real, decoder_input_ids=padded[1]).logits
    assert logits.std() > 0.15, "flat logits would hide mistakes"
    return [logits[row, :length] for row, (_, length) in enumerate(LENGTHS)]


@pytest.mark.parametrize("case", FAMILIES)
@torch.inference_mode()
def test_logits_of_padded_and_packed_pairs(case: str) -> None:
    """What transformers pads we pack into one row, and also run one by one."""
    network = ours(case).network
    assert isinstance(network, EncoderDecoder)
    sources, targets = (torch.cat(side)[None] for side in zip(*pairs(), strict=True))
    source_of, target_of = (
        torch.repeat_interleave(torch.arange(3), torch.tensor(side))[None]
        for side in zip(*LENGTHS, strict=True)
    )
    states = network.encode(
        dense_batch(sources, same_document(source_of), document_positions(source_of))
    )
    memory = CrossMemory(
        states_RSW=states[None], visible_RQS=target_of[:, :, None] == source_of[:, None]
    )
    visible = same_document(target_of).tril()
    batch = dense_batch(targets, visible, document_positions(target_of), memory=memory)
    logits = network.logits(network.hidden(batch))
    packed = logits.split([length for _, length in LENGTHS])
    # The gated one's logits are large: against float64, transformers itself is off by 1.5e-4.
    bound = 2e-4 if case == "t5-1.1" else 1e-4
    for part, theirs in zip(packed, expected(case), strict=True):
        torch.testing.assert_close(part, theirs, atol=bound, rtol=0)


@pytest.mark.parametrize("case", FAMILIES)
def test_saved_as_it_was_stored(case: str, tmp_path: Path) -> None:
    network = ours(case).network
    assert isinstance(network, EncoderDecoder)
    original = load_file(saved(case, tmp_path) / "model.safetensors")
    stored = stored_tensors(network)
    assert set(stored) == set(original)
    for name, tensor in stored.items():
        torch.testing.assert_close(tensor, original[name], rtol=0, atol=0)


# --------------------------------------------------------------------------------------- generate
def sources(num: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(4, VOCABULARY) for _ in range(rng.randrange(1, 30))] for _ in range(num)]


def generate(case: str, source: list[int], **options: Any) -> list[list[int]]:
    """New tokens of every returned text, up to and with the end token."""
    texts = reference(case).generate(
        torch.tensor([source]),
        attention_mask=torch.ones(1, len(source), dtype=torch.long),
        max_new_tokens=NEW,
        do_sample=False,
        # transformers makes T5's cache with the encoder's number of layers.
        use_cache=not case.startswith("t5"),
        **options,
    )
    found = []
    for text in texts[:, 1:].tolist():
        found.append(text[: text.index(END) + 1] if END in text else text)
    return found


@pytest.mark.parametrize("case", FAMILIES)
def test_greedy_is_equal_token_for_token(case: str) -> None:
    engine = Engine(ours(case), cache_tokens=4096)
    given = sources(8)
    completions = engine.generate([Request(prompt=s, max_new_tokens=NEW) for s in given])
    drafted = engine.generate(
        [Request(prompt=s, max_new_tokens=NEW, method="speculative") for s in given]
    )
    for source, completion, other in zip(given, completions, drafted, strict=True):
        assert [completion.tokens] == generate(case, source)
        assert other.tokens == completion.tokens
    assert len({tuple(completion.tokens) for completion in completions}) > 3


LONG = ({"width": 3, "length_penalty": 2.0}, {"num_beams": 3, "length_penalty": 2.0})
EARLY = ({"width": 4, "early_stopping": "yes"}, {"num_beams": 4, "early_stopping": True})


@pytest.mark.parametrize(
    ("case", "options"),
    [
        *((case, ({"width": 4}, {"num_beams": 4})) for case in FAMILIES),
        ("bart", LONG),
        ("marian", EARLY),
    ],
)
def test_beams_are_equal(case: str, options: tuple[dict[str, Any], dict[str, Any]]) -> None:
    engine = Engine(ours(case), cache_tokens=4096)
    for source in sources(3, seed=1):
        request = Request(
            prompt=source, max_new_tokens=NEW, n=2, method="beam_search", options=options[0]
        )
        texts = [choice.tokens for choice in engine.generate(request).choices]
        assert texts == generate(case, source, num_return_sequences=2, **options[1])


def test_repetition_is_penalised_as_in_transformers() -> None:
    engine = Engine(ours("bart"), cache_tokens=4096)
    for source in sources(3, seed=2):
        request = Request(
            prompt=source, max_new_tokens=NEW, repetition_penalty=1.5, no_repeat_ngram=2
        )
        theirs = generate("bart", source, repetition_penalty=1.5, no_repeat_ngram_size=2)
        assert [engine.generate(request).tokens] == theirs


# ------------------------------------------------------------------------ what a checkpoint says
def test_rules_come_from_the_generation_config() -> None:
    rules = {case: ours(case).abilities.text_rules for case in FAMILIES}
    assert rules["bart"] == TextRules(
        start_tokens=(3,), first_token=0, last_tokens=frozenset({END})
    )
    assert rules["marian"] == TextRules(start_tokens=(3,), banned=((PAD,),))
    assert rules["t5"] == TextRules(start_tokens=(3,))
    assert ours("t5").abilities.source_length == 512


def _without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields.pop(name)


def _with(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields.update(changes)


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("marian", _with(share_encoder_decoder_embeddings=False), "must share their vocabulary"),
        ("t5", _with(feed_forward_proj="gated-silu"), "supported with gelu only"),
        ("t5", _with(decoder_start_token_id=None), "lacks the field 'decoder_start_token_id'"),
        ("bart", _with(bad_words_ids=[3]), "a list of lists of token ids"),
        ("bart", _with(encoder_layers=5000), "at most 1000"),
        ("bart", _with(bad_words_ids=[[4], [5, 96]]), "bans token 96; token ids are 0 to 95"),
        ("t5", _with(decoder_start_token_id=200), "forces or bans token 200"),
    ],
)
def test_configurations_that_cannot_be_honoured_are_refused(
    case: str, change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    folder = saved(case, tmp_path)
    (folder / "generation_config.json").unlink()
    fields = json.loads((folder / "config.json").read_text())
    change(fields)
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=message):
        open_folder(folder)


def test_older_checkpoints_without_a_bias_or_with_their_start_in_bos(tmp_path: Path) -> None:
    folder = saved("bart", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["final_logits_bias"]
    tensors["model.encoder.embed_tokens.weight"] = tensors["model.shared.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    fields = json.loads((folder / "config.json").read_text())
    del fields["decoder_start_token_id"]
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 5}))
    config, source = open_folder(folder)
    network = load_network(config, source, dtype=torch.float32)
    assert config.text_rules == TextRules(start_tokens=(5,))
    assert not network.logit_bias.bias.any()
