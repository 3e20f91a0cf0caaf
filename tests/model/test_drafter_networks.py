"""Drafters' networks from their published layouts, against a naive dense twin; loading refusals."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tests import drafter_twins as twins
from tests.drafter_folders import (
    BLOCK,
    FUSED_LAYERS,
    MASK,
    NUM_LAYERS,
    VOCABULARY,
    WIDTH,
    Weights,
    read,
    write_dflash,
    write_eagle,
    write_medusa,
    write_target,
)
from tests.tiny import tiny_config

from anyorder.core.attention import (
    CAUSAL,
    Attention,
    Explicit,
    Tree,
)
from anyorder.core.batch import PackedBatch, dense_batch
from anyorder.core.errors import CheckpointError, UserError
from anyorder.engine.engine import Engine
from anyorder.model.drafters.draft_vocabulary import output_rows
from anyorder.model.drafters.medusa import NetworkWithHeads
from anyorder.model.loaded import LoadedModel, load, load_draft
from anyorder.model.transformer import Transformer


def ids(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1, VOCABULARY - 1) for _ in range(length)]


@pytest.fixture(scope="module")
def target_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def target(target_folder: Path) -> LoadedModel:
    return load(target_folder, dtype=torch.float64, device="cpu")


@pytest.fixture(scope="module")
def target_weights(target_folder: Path) -> Weights:
    return read(target_folder)


def assert_close(actual: Any, expected: torch.Tensor) -> None:
    """Angles are float32, whatever the weights are."""
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def features(weights: Weights, tokens: list[int], depths: tuple[int, ...]) -> torch.Tensor:
    stream, _ = twins.llama(weights, tokens)
    return torch.cat([stream[depth] for depth in depths], dim=-1)


def batch_of(
    tokens: list[int], attention: Attention, *conditioning: Any, start: int
) -> PackedBatch:
    """All tokens in one pass: `start` causal ones, then some that see them and each other."""
    new = len(tokens) - start
    visible = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
    visible[start:, start:] = attention.visible(new)
    batch = dense_batch(torch.tensor([tokens]), visible[None])
    depths = [*range(start), *(start + depth for depth in attention.depths(new))]
    positions = torch.tensor(depths)
    group = dataclasses.replace(
        batch.groups[0], query_positions_RQ=positions[None], key_positions_RK=positions[None]
    )
    return dataclasses.replace(
        batch,
        positions_N=positions,
        groups=(group,),
        taps={1: None},
        conditioning=conditioning,
    )


def test_the_twin_is_the_target(target: LoadedModel, target_weights: Weights) -> None:
    """What the other tests rely on."""
    tokens = ids(0, 11)
    batch = dense_batch(torch.tensor([tokens]))
    batch.taps.update(dict.fromkeys(range(NUM_LAYERS + 1)))
    hidden = target.network.hidden(batch, None)
    stream, expected = twins.llama(target_weights, tokens)
    assert_close(hidden, expected)
    for depth, tap in batch.taps.items():
        assert_close(tap, stream[depth])


@pytest.mark.parametrize("prefix", ["", "medusa_head."])
@pytest.mark.parametrize(("num_heads", "num_blocks"), [(3, 2), (1, 0)])
def test_medusa_heads(
    target: LoadedModel, tmp_path: Path, prefix: str, num_heads: int, num_blocks: int
) -> None:
    folder = write_medusa(tmp_path, num_heads, num_blocks, prefix)
    loaded = load_draft(folder, target)["target"]
    assert isinstance(loaded.network, NetworkWithHeads) and loaded.network.base is target.network
    drafts = {"speculative": {"drafter": "medusa"}}
    assert loaded.abilities == dataclasses.replace(
        target.abilities, num_heads=num_heads, decoding=drafts
    )
    assert loaded.tokenizer is target.tokenizer and loaded.network.device.type == "cpu"
    x = torch.randn(4, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = {key.removeprefix(prefix): tensor for key, tensor in read(folder).items()}
    logits = loaded.network.heads(x)
    assert logits.dtype == torch.float32
    expected = twins.medusa(weights, num_heads, num_blocks, x)
    assert_close(logits, expected.float())
    assert_close(loaded.network.logits(x), target.network.logits(x))


@pytest.mark.parametrize("own_embedding", [False, True])
def test_eagle_equals_its_dense_twin(
    target: LoadedModel, target_weights: Weights, tmp_path: Path, own_embedding: bool
) -> None:
    """A text of nine tokens, and a chain of three more that runs on its own outputs."""
    folder = write_eagle(tmp_path, own_embedding=own_embedding)
    loaded = load_draft(folder, target)["draft"]
    network: Any = loaded.network
    assert loaded.abilities.kind == "eagle"
    assert loaded.abilities.decoding == {"speculative": {"drafter": "eagle"}}
    assert loaded.abilities.features == (2, NUM_LAYERS // 2, NUM_LAYERS - 3) == (2, 3, 4)
    weights, text, after = read(folder), ids(0, 9), ids(1, 3)
    embedding = weights.get("embed_tokens.weight", target_weights["model.embed_tokens.weight"])
    known = features(target_weights, text[:-1], (2, 3, 4))
    output, logits = twins.eagle(weights, embedding, [*text[1:], *after], known)
    below = output[len(known) - 1 : -1]
    batch = batch_of([*text[1:], *after], CAUSAL, (0, known), (len(known), below), start=len(known))
    hidden = network.hidden(batch, None)
    assert_close(batch.taps[1], output)
    assert_close(network.logits(hidden), logits.float())
    assert torch.isinf(logits).any() and not torch.isinf(logits).all()


def test_eagle_runs_a_tree_as_its_paths(
    target: LoadedModel, target_weights: Weights, tmp_path: Path
) -> None:
    folder = write_eagle(tmp_path)
    network: Any = load_draft(folder, target)["draft"].network
    weights, text, nodes, parents = read(folder), ids(0, 7), ids(1, 5), (-1, -1, 0, 1, 0)
    known = features(target_weights, text[:-1], (2, 3, 4))
    expected, below = [], []
    for node in range(5):
        path = [node]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        chain = [*text[1:], *(nodes[step] for step in path)]
        output, logits = twins.eagle(
            weights, target_weights["model.embed_tokens.weight"], chain, known
        )
        expected.append(logits[-1])
        below.append(output[-2])
    batch = batch_of(
        [*text[1:], *nodes],
        Tree(parents=parents),
        (0, known),
        (len(known), torch.stack(below)),
        start=len(known),
    )
    logits = network.logits(network.hidden(batch, None)[len(known) :])
    assert_close(logits, torch.stack(expected).float())


def test_dflash_equals_its_dense_twin(
    target: LoadedModel, target_weights: Weights, tmp_path: Path
) -> None:
    folder = write_dflash(tmp_path)
    loaded = load_draft(folder, target)["draft"]
    network: Any = loaded.network
    abilities = loaded.abilities
    assert (abilities.kind, abilities.block_size, abilities.mask_token) == ("dflash", BLOCK, MASK)
    assert abilities.decoding == {"speculative": {"drafter": "block_drafter"}}
    assert abilities.features == tuple(layer + 1 for layer in FUSED_LAYERS)
    text = ids(0, 9)
    block = [text[-1], *[MASK] * (BLOCK - 1)]
    known = features(target_weights, text[:-1], abilities.features)
    everything = Explicit(mask=((True,) * BLOCK,) * BLOCK)
    batch = batch_of([*text[:-1], *block], everything, (0, known), start=len(known))
    logits = network.logits(network.hidden(batch, None)[len(known) :])
    expected = twins.dflash(
        read(folder),
        target_weights["model.embed_tokens.weight"],
        target_weights["lm_head.weight"],
        block,
        known,
    )
    assert_close(logits, expected.float())


def test_layers_that_a_configuration_names(target: LoadedModel, tmp_path: Path) -> None:
    named = {"eagle_aux_hidden_state_layer_ids": [0, 2, 6], "use_aux_hidden_state": True}
    folder = write_eagle(tmp_path, eagle_config=named)
    assert load_draft(folder, target)["draft"].abilities.features == (1, 3, 7)


def test_eagle_may_score_all_tokens(target: LoadedModel, tmp_path: Path) -> None:
    folder = write_eagle(tmp_path, draft_vocab_size=VOCABULARY)
    weights = read(folder)
    for name in ("d2t", "t2d"):
        del weights[name]
    weights["lm_head.weight"] = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64)
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    network: Any = load_draft(folder, target)["draft"].network
    x = torch.randn(2, WIDTH, dtype=torch.float64)
    expected = x @ weights["lm_head.weight"].T
    assert_close(network.logits(x), expected.float())


def test_the_embedding_is_shared_and_the_type_is_the_targets(
    target_folder: Path, tmp_path: Path
) -> None:
    target = load(target_folder, dtype="bfloat16", device="cpu")
    for write, names in ((write_eagle, {"d2t", "t2d"}), (write_dflash, set())):
        folder = write(tmp_path / write.__name__)
        drafter: Any = load_draft(folder, target)["draft"].network
        size = sum(parameter.numel() for parameter in drafter.parameters())
        stored = sum(t.numel() for name, t in read(folder).items() if name not in names)
        assert size == stored and drafter.dtype == torch.bfloat16
        # Not even a copy has a target of its own.
        for each in (drafter, copy.deepcopy(drafter)):
            assert each._host.target is target.network


# ----------------------------------------------------------------------------------------- refusals
def edit(folder: Path, change: Callable[[Any], Any], what: str = "config") -> Path:
    """Change a checkpoint's configuration or its tensors."""
    if what == "config":
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))
    else:
        (file,) = folder.glob("*.safetensors")
        weights = safetensors.torch.load_file(file)
        change(weights)
        safetensors.torch.save_file(weights, file)
    return folder


REFUSALS: list[tuple[Callable[..., Path], str, Callable[[Any], Any], str]] = [
    (write_eagle, "config", lambda c: c.update(vocab_size=99), "99 tokens and the target .* 61"),
    (write_eagle, "config", lambda c: c.update(hidden_size=16), "16 dimensions and the .* has 32"),
    (write_eagle, "config", lambda c: c.update(num_hidden_layers=2), "of 2 layers; EAGLE-3 has 1"),
    (write_eagle, "config", lambda c: c.update(draft_vocab_size=41), "'lm_head.weight' has shape"),
    (
        write_eagle,
        "config",
        lambda c: c.update(eagle_config={"eagle_aux_hidden_state_layer_ids": [1, 2, 7]}),
        "after layers 2, 3, 8, but .* has 7 layers",
    ),
    (write_eagle, "tensors", lambda w: w.pop("d2t"), "lacks tensor 'd2t'"),
    (write_eagle, "tensors", lambda w: w["d2t"].add_(30), "each of 40 rows to a token below 61"),
    (write_eagle, "tensors", lambda w: w["d2t"].sub_(30), "each of 40 rows to a token below 61"),
    (
        write_eagle,
        "tensors",
        lambda w: w.update(d2t=w["d2t"].float()),
        "'d2t' .* must hold whole numbers, but it is of type float32",
    ),
    (write_eagle, "tensors", lambda w: w.pop("fc.weight"), "lacks tensor 'fc.weight'"),
    (
        write_eagle,
        "tensors",
        lambda w: w.update(extra=torch.zeros(1)),
        "1 tensors that an EAGLE-3 drafter does not have, the first is 'extra'",
    ),
    (write_dflash, "config", lambda c: c.update(vocab_size=99), "99 tokens and the target .* 61"),
    (write_dflash, "config", lambda c: c.update(num_target_layers=9), "of 9 layers and .* has 7"),
    (write_dflash, "config", lambda c: c.update(block_size=1), "block_size = 1 .* at least 1 more"),
    (
        write_dflash,
        "config",
        lambda c: c["dflash_config"].update(target_layer_ids=[1, 7]),
        "target_layer_ids = .* has layers 0 to 6",
    ),
    (
        write_dflash,
        "config",
        lambda c: c["dflash_config"].update(mask_token_id=61),
        "mask_token_id = 61 .* token ids are 0 to 60",
    ),
    (
        write_dflash,
        "config",
        lambda c: c["dflash_config"].pop("target_layer_ids"),
        "lacks the field 'target_layer_ids'",
    ),
    (write_dflash, "tensors", lambda w: w.pop("hidden_norm.weight"), "'hidden_norm.weight'"),
    (write_medusa, "config", lambda c: c.update(medusa_num_heads=4), "lacks tensor '3.0.linear"),
    (write_medusa, "config", lambda c: c.update(medusa_num_heads=2), "a set of 2 Medusa heads"),
    (write_medusa, "config", lambda c: c.update(medusa_num_heads=0), "must be at least 1, got 0"),
    (write_medusa, "config", lambda c: c.update(medusa_num_heads=99), "99 heads .* at most 64"),
    (
        write_medusa,
        "tensors",
        lambda w: w.update({"0.2.weight": torch.zeros(99, WIDTH)}),
        "for 99 by 32 .* has 61 by 32",
    ),
]


@pytest.mark.parametrize(("write", "what", "change", "message"), REFUSALS)
def test_what_does_not_fit_is_refused_in_one_line(
    target: LoadedModel,
    tmp_path: Path,
    write: Callable[..., Path],
    what: str,
    change: Callable[[Any], Any],
    message: str,
) -> None:
    folder = edit(write(tmp_path / "drafter"), change, what)
    with pytest.raises(CheckpointError, match=message) as caught:
        Engine(target, draft=folder, cache_tokens=64)
    assert "\n" not in str(caught.value)


def test_a_target_too_shallow_for_the_usual_layers_is_refused(
    target: LoadedModel, tmp_path: Path
) -> None:
    network: Any = target.network
    few = dataclasses.replace(network.config, layers=network.config.layers[:2])
    shallow = dataclasses.replace(target, network=type(network).random(few, seed=0))
    with pytest.raises(CheckpointError, match=r"after layers 2, 1, -1, but .* has 2 layers"):
        load_draft(write_eagle(tmp_path), shallow)


def test_pickled_heads_are_refused(target: LoadedModel, tmp_path: Path) -> None:
    folder = write_medusa(tmp_path)
    (folder / "medusa_lm_head.safetensors").rename(folder / "medusa_lm_head.pt")
    with pytest.raises(CheckpointError, match=r"pickled weights \(medusa_lm_head.pt\)"):
        load_draft(folder, target)


def test_a_target_without_weights_of_its_own_is_refused(
    target: LoadedModel, tmp_path: Path
) -> None:
    odd: Any = dataclasses.replace(target, network=object())
    with pytest.raises(UserError, match=r"needs a target loaded from a checkpoint, and .* object"):
        load_draft(write_eagle(tmp_path), odd)


def test_a_target_with_heads_takes_another_drafter(target: LoadedModel, tmp_path: Path) -> None:
    with_heads = load_draft(write_medusa(tmp_path / "medusa"), target)["target"]
    assert load_draft(write_eagle(tmp_path / "eagle"), with_heads)["draft"].abilities.features


def test_a_decoder_is_still_a_draft_model(target: LoadedModel, target_folder: Path) -> None:
    loaded = load_draft(target_folder, target, dtype=torch.float64, device="cpu")
    assert loaded["draft"].abilities.kind == "decoder"
    assert loaded["draft"].abilities.decoding == {"speculative": {"drafter": "draft_model"}}


# ---------------------------------------------------------------------- read out with target's rows
def rewrite(folder: Path, weights: Weights, **changes: Any) -> None:
    (file,) = folder.glob("*.safetensors")
    safetensors.torch.save_file(weights, file)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_eagle_without_a_head_reads_out_with_its_targets_rows(
    target: LoadedModel, target_weights: Weights, tmp_path: Path
) -> None:
    folder = write_eagle(tmp_path)
    weights = read(folder)
    del weights["lm_head.weight"]
    rewrite(folder, weights)
    network: Any = load_draft(folder, target)["draft"].network
    scored = weights["d2t"] + torch.arange(len(weights["d2t"]))
    x = torch.randn(3, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.full((3, VOCABULARY), -torch.inf)
    expected[:, scored] = (x @ target_weights["lm_head.weight"][scored].T).float()
    assert_close(network.logits(x), expected)
    assert_close(network.draft_logits(x), expected[:, scored])
    assert not any("rows" in name for name in network.state_dict())
    del weights["d2t"]
    rewrite(folder, weights)
    with pytest.raises(CheckpointError, match="lacks tensor 'd2t'"):
        load_draft(folder, target)


def test_medusa_heads_without_outputs_read_out_with_their_targets_rows(
    target: LoadedModel, target_weights: Weights, tmp_path: Path
) -> None:
    folder = write_medusa(tmp_path, 3, 2)
    whole = read(folder)
    scored = torch.arange(0, VOCABULARY, 2)
    weights = {name: tensor for name, tensor in whole.items() if "linear" in name}
    weights["d2t"] = scored - torch.arange(len(scored))
    rewrite(folder, weights, draft_vocab_size=len(scored))
    loaded = load_draft(folder, target)["target"]
    x = torch.randn(4, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = dict.fromkeys(
        (f"{head}.2.weight" for head in range(3)), target_weights["lm_head.weight"]
    )
    expected = twins.medusa({**whole, **rows}, 3, 2, x).float()
    expected[..., 1::2] = -torch.inf
    assert_close(loaded.network.heads(x), expected)
    rewrite(folder, weights, draft_vocab_size=len(scored) + 1)
    with pytest.raises(CheckpointError, match="must lead each of 32 rows"):
        load_draft(folder, target)
    rewrite(folder, {**weights, "0.0.linear.weight": torch.zeros(8, 8)})
    with pytest.raises(CheckpointError, match=r"are for 8 by 8 \(dimensions by dimensions\)"):
        load_draft(folder, target)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bits", [None, 8, 4])
def test_rows_of_a_quantised_target(tied: bool, bits: Any) -> None:
    """`logits` of some tokens are columns of all, and `output_rows` what they are made with."""
    network = Transformer.random(tiny_config(width=64, tied_embeddings=tied), seed=0)
    own = network.embedding if tied else network.head
    exact = own.weight.clone()
    if bits is not None:
        network.quantize(bits)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    some = torch.tensor([7, 0, 33])
    torch.testing.assert_close(network.logits(x, some), network.logits(x)[:, some])
    # Embeddings stay as they are; half a step of a group's range, in either direction.
    step = 0.0 if tied or bits is None else float(exact.abs().max()) * 2 / (2**bits - 2)
    assert float((output_rows(network, some) - exact[some]).abs().max()) <= step
    assert len(output_rows(network, None)) == len(exact)
