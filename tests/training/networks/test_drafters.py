"""Drafters trained by recipes: their folders, in the engine and out of it; resuming; refusals."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.drafting import KINDS, recipe_of, surroundings, target, trainee
from tests.training.objectives.toys import pack
from tests.training.runs import SECTIONS, MemorySequences, byte_tokenizer, small_recipe

from anyorder.core.errors import UserError
from anyorder.core.objective import TrainingBatch
from anyorder.core.request import Request
from anyorder.engine.engine import Engine
from anyorder.model.drafters.eagle import Eagle
from anyorder.model.loaded import load, load_draft
from anyorder.model.transformer import Transformer
from anyorder.training.config import Recipe, build_recipe
from anyorder.training.setup import TrainingData, _counts
from anyorder.training.trainer import Trainer

NAMES = list(KINDS)
LENGTH = 16
MODELS: dict[str, dict[str, Any]] = {
    "medusa": {"heads": 3},
    "eagle": {"vocabulary": 120},
    "block_drafter": {"block_size": 4},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target that has learnt to count in bytes, by steps of 3."""
    folder = tmp_path_factory.mktemp("target")
    recipe = small_recipe(
        folder / "out",
        model={"width": 32, "layers": 4, "heads": 2, "kv_heads": 1, "mlp_width": 48},
        optimizer={"name": "muon", "learning_rate": 0.02},
        run={"steps": 50, "batch_size": 8, "validate_every": 99, "checkpoint_every": 99},
    )
    return Trainer(recipe, data=counting(folder)).run()


def counting(folder: Path) -> TrainingData:
    places = 3 * torch.arange(LENGTH)
    sequences = MemorySequences(tokens_ST=(torch.arange(60)[:, None] + places) % 60 + 65)
    return TrainingData(
        train=sequences, validation=None, tokenizer_folder=byte_tokenizer(folder / "tokenizer")
    )


def recipe(
    output: Path,
    folder: Path,
    name: str,
    *,
    model: Mapping[str, Any] = MappingProxyType({}),
    states: str | None = None,
    **run: Any,
) -> Recipe:
    teacher = {"init": str(folder)} | ({} if states is None else {"states": states})
    return build_recipe(
        {
            "model": {"kind": KINDS[name], **MODELS[name], **model},
            "teacher": teacher,
            "data": {"sources": ["text.txt"], "length": LENGTH},
            "objective": {"name": name},
            "optimizer": {"name": "muon", "learning_rate": 0.02},
            "run": {**SECTIONS["run"], **run, "output": str(output)},
        }
    )


def drafted(engine: Engine, name: str) -> tuple[list[int], float]:
    """A text, and how many tokens each pass of the target made."""
    options = {"drafter": name, "length": 3, "adaptive": False}
    request = Request(prompt=[70, 73, 76], method="speculative", max_new_tokens=24, options=options)
    completion = engine.generate(request)
    plain = Request(prompt=[70, 73, 76], max_new_tokens=24)
    assert completion.tokens == engine.generate(plain).tokens
    return completion.tokens, completion.report.mean_accepted_length


@pytest.mark.parametrize(
    ("name", "model"),
    [
        *((name, {}) for name in NAMES),
        ("medusa", {"vocabulary": 120}),
        ("eagle", {"own_head": False}),
    ],
)
def test_a_trained_drafter_drafts(
    tmp_path: Path, folder: Path, name: str, model: dict[str, Any]
) -> None:
    """The folder is what `anyorder.Engine(target, draft=folder)` takes, and it was worth it."""
    # Masks learn slowly to look at the last token, and how far away it is.
    run: dict[str, Any] = {"steps": 80 if name == "block_drafter" else 40, "batch_size": 8}
    made = recipe(tmp_path / "out", folder, name, model=model, **run, checkpoint_every=99)
    draft = Trainer(made, data=counting(tmp_path)).run()
    tokens, mean = drafted(Engine(folder, draft=draft, device="cpu", cache_tokens=512), name)
    assert tokens[:4] == [79, 82, 85, 88]
    assert mean > 2.2
    untrained = tmp_path / "untrained"
    first = Trainer(recipe(untrained, folder, name, model=model), data=counting(tmp_path))
    first.recipe.model.save(untrained, first._passes.trainee, tmp_path)
    fresh = Engine(folder, draft=untrained, device="cpu", cache_tokens=512)
    assert drafted(fresh, name)[1] < mean - 0.5


SMALL = [("medusa", {"vocabulary": 40}), ("eagle", {"own_head": False})]
"""Kinds that read out with the target's rows."""


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in NAMES), *SMALL])
def test_the_folder_holds_what_was_trained(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    made = trainee(name, spread=0.1, **options)
    recipe_of(name).save(tmp_path / "drafter", made, tmp_path)
    (loaded,) = load_draft(tmp_path / "drafter", target()).values()
    for field in ("kind", "features", "block_size", "mask_token", "num_heads", "vocabulary_size"):
        assert getattr(loaded.abilities, field) == getattr(made.abilities, field), field
    network: Any = loaded.network
    network = getattr(network, "further", network)
    ours, theirs = (dict(each.named_parameters()) for each in (made.network, network))
    assert ours.keys() == theirs.keys()
    for parameter_name, parameter in ours.items():
        assert torch.equal(parameter.bfloat16(), theirs[parameter_name].bfloat16())
    if name == "block_drafter":
        return  # it scores with its target
    assert (made.scored is None) == (name == "medusa" and not options)
    if made.scored is not None:
        assert torch.equal(network.scored, made.scored)
    x = torch.randn(3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter.copy_(parameter.bfloat16())
    torch.testing.assert_close(made.draft_logits(x), network.draft_logits(x))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_goes_on_where_it_stopped(tmp_path: Path, folder: Path, name: str) -> None:
    """And in bfloat16: the drafter's copy reads the one target, which is in that type."""
    weights = {}
    for output, steps in (("whole", (4,)), ("parts", (2, 4))):
        for last in steps:
            made = recipe(
                tmp_path / output, folder, name, steps=4, checkpoint_every=2, dtype="bfloat16"
            )
            run = Trainer(made, data=counting(tmp_path))
            if last == 2:
                run._save = stop_after(run._save)  # type: ignore[method-assign]
                with pytest.raises(KeyboardInterrupt):
                    run.run()
                continue
            place = run.run()
        (file,) = place.glob("*.safetensors")
        weights[output] = load_file(file)
    for tensor_name, tensor in weights["whole"].items():
        assert torch.equal(tensor, weights["parts"][tensor_name]), tensor_name
    checkpoint = sorted((tmp_path / "whole" / "checkpoints").iterdir())[-1]
    trained = load_file(checkpoint / "weights.safetensors")
    assert trained.keys() == {n for n, _ in run._passes.trainee.network.named_parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_the_target_runs_a_row_once(tmp_path: Path, folder: Path, name: str) -> None:
    """In this run and in others; and a drafter learns the same from what was kept."""
    weights = []
    for output, states in (("plain", None), ("kept", "states"), ("again", "states")):
        kept = None if states is None else str(tmp_path / states)
        made = recipe(tmp_path / output, folder, name, states=kept, steps=3, batch_size=4)
        run = Trainer(made, data=counting(tmp_path))
        passes = count_passes(run._passes.trainee.teacher)
        (file,) = run.run().glob("*.safetensors")
        weights.append(load_file(file))
        # Of 12 rows, one comes twice.
        assert passes["target"] == {"plain": 3, "kept": 11, "again": 0}[output]
    for tensor_name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][tensor_name], atol=1e-4, rtol=0.01)
        assert torch.equal(weights[1][tensor_name], weights[2][tensor_name])


def count_passes(teacher: Any) -> dict[str, int]:
    passes, run = {"target": 0}, teacher.network.hidden

    def counted(*arguments: Any) -> torch.Tensor:
        passes["target"] += 1
        found: torch.Tensor = run(*arguments)
        return found

    teacher.network.hidden = counted
    return passes


def stop_after(save: Any) -> Any:
    def stopping() -> None:
        save()
        raise KeyboardInterrupt

    return stopping


# --------------------------------------------------------------------------------------- beginnings
def test_heads_begin_as_the_targets_own() -> None:
    made = trainee("medusa")
    x = torch.randn(3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    network: Any = target().network
    expected = network.logits(x)[:, None].expand(-1, 3, -1)
    torch.testing.assert_close(made.heads(x).detach(), expected)
    small = trainee("medusa", vocabulary=9)
    assert small.scored is not None and len(small.scored) == 9
    torch.testing.assert_close(small.draft_logits(x).detach(), expected[..., small.scored])
    weights = sum(parameter.numel() for parameter in small.network.parameters())
    assert weights == 3 * (32 * 32 + 32)


def test_eagle_scores_the_most_frequent_tokens(tmp_path: Path, folder: Path) -> None:
    network = trainee("eagle", vocabulary=9).network
    assert isinstance(network, Eagle) and network.scored is not None
    # By `surroundings`, ids whose remainder by 7 is 6 are the most frequent ones, then 5.
    assert network.scored.tolist() == sorted([*range(6, 61, 7), 5])
    whole: Any = trainee("eagle", vocabulary=None).network
    assert whole.scored is None and len(whole.head.weight) == 61
    bare: Any = trainee("eagle", vocabulary=9, own_head=False)
    x = torch.randn(2, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    host: Any = target().network
    torch.testing.assert_close(bare.draft_logits(x), host.logits(x)[:, bare.scored])
    assert not hasattr(bare.network, "head")
    run = Trainer(recipe(tmp_path / "out", folder, "eagle"), data=counting(tmp_path))
    counted: Any = run._passes.trainee.network
    assert set(range(65, 125)) <= set(counted.scored.tolist()), "what the data hold"


def test_only_targets_are_counted() -> None:
    class Two:
        num_sequences, length = 2, 6

        def batch(self, step: int, *, batch_size: int) -> TrainingBatch:
            assert batch_size == 1
            return pack([[3, 4, 4, 5], [4]] if step else [[7, 7, 3]], given=[(0, 0)], length=6)

    data: Any = Two()
    assert _counts(data, 9).tolist() == [0, 0, 0, 1, 3, 1, 0, 1, 0]


@pytest.mark.parametrize(("layers", "read"), [(1, [3]), (2, [1, 4]), (3, [1, 2, 4])])
def test_dflash_reads_layers_evenly(layers: int, read: list[int]) -> None:
    made = trainee("block_drafter", layers=layers)
    assert made.fields["dflash_config"]["target_layer_ids"] == read
    assert made.fields["num_hidden_layers"] == layers == len(made.network.layers)  # type: ignore[arg-type]


def test_eagle_begins_as_the_targets_last_layer() -> None:
    made: Any = trainee("eagle", from_target=True, mlp_width=20)
    network: Any = target().network
    layer, host = made.network.layers[0], network.layers[-1]
    x = torch.randn(3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens = torch.cat((torch.zeros(3, 32), x), dim=1)
    qkv = torch.nn.functional.linear(tokens.double(), layer.attention.qkv.weight)
    torch.testing.assert_close(qkv, host.attention.qkv(x))
    gate, up = host.mlp.gate_up(x).chunk(2, dim=1)
    some = torch.nn.functional.silu(gate) * up
    some[:, 20:] = 0.0
    torch.testing.assert_close(layer.mlp(x), host.mlp.down(some))
    features = torch.cat((torch.zeros(3, 64).double(), x), dim=1)
    assert float((made.network.fusion(features) - x).detach().abs().max()) < 0.1
    assert torch.equal(made.network.final_norm.weight, network.final_norm.weight)
    config = dataclasses.replace(network.config, qkv_bias=True)
    other = dataclasses.replace(target(), network=Transformer.random(config, seed=0))
    with pytest.raises(UserError, match="layers of target are not LLaMA's"):
        recipe_of("eagle", from_target=True).make(surroundings("eagle", teacher=other))


def test_sizes_follow_the_target_unless_told(tmp_path: Path) -> None:
    for name in ("eagle", "block_drafter"):
        assert trainee(name).fields["intermediate_size"] == 48
        made = trainee(name, mlp_width=20)
        recipe_of(name).save(tmp_path / name, made, tmp_path)
        assert json.loads((tmp_path / name / "config.json").read_text())["intermediate_size"] == 20
    heads = trainee("medusa", heads=2, blocks=3).network
    assert len(heads.each) == 2 and len(heads.each[0]) == 4  # type: ignore[arg-type, index]


def test_refusals(folder: Path) -> None:
    with pytest.raises(UserError, match=r"needs a mask token, and target has none; give \[model\]"):
        recipe_of("block_drafter", mask_token=None).make(surroundings("block_drafter"))
    with pytest.raises(UserError, match="below 61"):
        recipe_of("block_drafter", mask_token=61).make(surroundings("block_drafter"))
    shallow = load(folder, device="cpu")
    network: Any = shallow.network
    config = dataclasses.replace(network.config, layers=network.config.layers[:3])
    few = Transformer.random(config, seed=0)
    with pytest.raises(UserError, match="has 3 in all, and 4 are needed"):
        recipe_of("eagle").make(
            surroundings("eagle", teacher=dataclasses.replace(shallow, network=few))
        )
    with pytest.raises(UserError, match="medusa needs a teacher"):
        sections = recipe(folder, folder, "medusa").fields()
        del sections["teacher"]
        sections["data"] |= {"sources": ["a.txt"], "tokenizer": "x"}
        build_recipe(sections)
