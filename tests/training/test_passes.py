"""Passes: checkpointed and compiled layers, teachers, companions, and what a batch may hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tests.training.runs import memory_data, small_recipe
from torch.autograd.graph import saved_tensors_hooks

from anyorder.core.batch import dense_batch
from anyorder.core.errors import UserError
from anyorder.core.method import Abilities
from anyorder.core.objective import Loss, Objective, TrainableModel, TrainingBatch
from anyorder.training.config import Recipe
from anyorder.training.metrics import read_metrics
from anyorder.training.network import Trainee
from anyorder.training.passes import Passes, _filled, split
from anyorder.training.team import Team
from anyorder.training.trainer import Trainer


def trainer(folder: Path, name: str, **changes: Mapping[str, Any]) -> Trainer:
    return Trainer(small_recipe(folder / name, **changes), data=memory_data(folder))


def with_objective(recipe: Recipe, objective: Objective) -> Recipe:
    """A recipe whose objective has no file of its own."""
    recipe = replace(recipe, objective=objective)
    object.__setattr__(recipe, "fields", dict)
    return recipe


# ------------------------------------------------------------------------------------- less memory
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_checkpointed_layers_have_the_same_gradients_for_less_memory(
    tmp_path: Path, dtype: str
) -> None:
    gradients, kept = [], []
    for number, checkpointed in enumerate((False, True)):
        run = {"checkpoint_layers": checkpointed, "dtype": dtype}
        one = trainer(tmp_path, str(number), run=run, objective={"name": "masked_diffusion"})
        sizes: list[int] = []

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        batch = one._data.train.batch(0, batch_size=4)
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            one._gradient(batch, 1)
        # A checkpointed layer's own tensors are kept while its gradient is computed, not before.
        gradients.append([p.grad for _, p in one._passes.parameters()])
        kept.append(sum(sizes))
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.equal(plain, checkpointed)
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_compiled_layers_compute_the_same_and_resume_exactly(tmp_path: Path) -> None:
    def losses(name: str, **run: Any) -> list[float]:
        one = trainer(tmp_path, name, run=run)
        one.run()
        return [line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl")]

    compiled = losses("compiled", compile=True)
    assert compiled == pytest.approx(losses("plain"), rel=1e-5)

    def stop(metrics: Any) -> None:
        if metrics.step == 5:
            raise KeyboardInterrupt

    halted = trainer(tmp_path, "halted", run={"compile": True})
    halted._watch = stop
    with pytest.raises(KeyboardInterrupt):
        halted.run()
    assert losses("halted", compile=True) == compiled


def test_networks_without_layers_are_not_checkpointed(tmp_path: Path) -> None:
    bare = Trainee(
        network=torch.nn.Linear(2, 2),
        abilities=Abilities(name="x", vocabulary_size=2, context_length=2),
    )
    for option in ("checkpoint_layers", "compile"):
        recipe = small_recipe(tmp_path, run={option: True})
        with pytest.raises(UserError, match=rf"\[run\] {option} is for networks with layers"):
            Passes(bare, recipe, torch.device("cpu"), Team())


# ---------------------------------------------------------------------------- teacher and companion
@dataclass(frozen=True, kw_only=True)
class Imitation(Objective):
    """Cross-entropy with the teacher's distribution, beside a companion that guesses entropies."""

    needs_teacher: ClassVar[bool] = True

    def companion(self, abilities: Abilities) -> torch.nn.Module:
        return torch.nn.Linear(abilities.vocabulary_size, 1)

    def loss(self, model: TrainableModel, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        assert model.teacher is not None and model.companion is not None
        packed = dense_batch(batch.tokens_BT)
        taught = model.teacher.logits(model.teacher.hidden(packed))
        assert not taught.requires_grad
        logits = model.logits(model.hidden(packed))
        entropies = torch.special.entr(taught.softmax(-1)).sum(-1)
        guesses = model.companion(logits.detach().to(next(model.companion.parameters()).dtype))
        nats = F.cross_entropy(logits, taught.softmax(-1), reduction="sum")
        total = nats + (guesses[:, 0].float() - entropies).square().sum()
        return Loss(
            total=total, weight=float(batch.tokens_BT.numel()), metrics={"nats": nats.item()}
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_teacher_is_frozen_and_a_companion_is_trained_but_not_exported(
    tmp_path: Path, dtype: str
) -> None:
    data = memory_data(tmp_path)
    base = Trainer(small_recipe(tmp_path / "base"), data=data).run()

    def student(name: str) -> Trainer:
        changes = {"teacher": {"init": str(base)}, "data": {"vocabulary": None}}
        run = {"dtype": dtype, "steps": 6, "checkpoint_every": 2, "ema": 0.5}
        recipe = small_recipe(tmp_path / name, **changes, run=run)
        return Trainer(with_objective(recipe, Imitation()), data=data)

    whole = student("whole")
    teacher = whole._passes.trainee.teacher
    assert isinstance(teacher, Trainee)
    found = {p.dtype for p in teacher.network.parameters()}
    assert found == {getattr(torch, dtype)}
    before = {n: p.clone() for n, p in teacher.network.named_parameters()}
    companion = whole._passes.trainee.companion
    assert isinstance(companion, torch.nn.Linear)
    start = companion.weight.detach().clone()
    folder = whole.run()
    assert all(torch.equal(p, before[n]) for n, p in teacher.network.named_parameters())
    assert not torch.equal(companion.weight, start)
    kept = load_file(tmp_path / "whole" / "checkpoints" / "step-00000006" / "weights.safetensors")
    assert torch.equal(kept["companion.weight"], companion.weight)
    assert set(load_file(folder / "model.safetensors")) == set(
        load_file(base / "model.safetensors")
    )

    halted = student("halted")

    def stop(metrics: Any) -> None:
        if metrics.step == 3:
            raise KeyboardInterrupt

    halted._watch = stop
    with pytest.raises(KeyboardInterrupt):
        halted.run()
    again = student("halted")
    assert again.step == 2
    again.run()
    lines = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "halted")]
    assert [x["nats"] for x in lines[0]] == [x["nats"] for x in lines[1]]
    # The companion's first weights are the seed's, whatever else was drawn.
    torch.manual_seed(3)
    other = student("other")._passes.trainee.companion
    assert isinstance(other, torch.nn.Linear) and torch.equal(other.weight, start)


def test_teachers_that_are_missing_or_do_not_fit(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path / "out")
    with pytest.raises(UserError, match=r"needs a teacher; add \[teacher\] with init"):
        replace(recipe, objective=Imitation())
    with pytest.raises(UserError, match=r"vocabulary, but x knows only its own tokenizer"):
        small_recipe(tmp_path / "out", teacher={"init": "x"})
    with pytest.raises(UserError, match=r"\[teacher\] lacks init"):
        small_recipe(tmp_path / "out", teacher={}, data={"vocabulary": None})
    data = memory_data(tmp_path)
    short = {"context": 12}
    base = Trainer(small_recipe(tmp_path / "base", model=short), data=data).run()
    own = {"vocabulary": None, "length": 20}
    recipe = small_recipe(tmp_path / "out", teacher={"init": str(base)}, data=own)
    with pytest.raises(UserError, match=r"length is 20, but the context of .* is 12 tokens"):
        Trainer(recipe, data=data)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "vocab_size": 200}))
    weights = load_file(base / "model.safetensors")
    few = {**weights, "model.embed_tokens.weight": weights["model.embed_tokens.weight"][:200]}
    save_file(few, base / "model.safetensors", metadata={"format": "pt"})
    recipe = small_recipe(tmp_path / "out", teacher={"init": str(base)}, data={"vocabulary": None})
    with pytest.raises(UserError, match=r"the tokenizer has 258 tokens, but .* has 200"):
        Trainer(recipe, data=data)


# ------------------------------------------------------------------------------------------ batches
def test_a_batch_is_split_with_all_that_it_holds() -> None:
    batch = TrainingBatch(
        tokens_BT=torch.arange(12).view(4, 3),
        documents_BT=torch.zeros(4, 3, dtype=torch.int64),
        targets_BT=torch.ones(4, 3, dtype=torch.bool),
        sources_BS=torch.arange(20).view(4, 5),
        progress=0.25,
    )
    first, second = split(batch, 2)
    assert first.tokens_BT.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert second.sources_BS is not None and second.sources_BS.tolist()[0] == [10, 11, 12, 13, 14]
    assert second.source_documents_BS is None and second.progress == 0.25


def test_a_copy_with_other_values_shares_what_the_original_shares() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, bias=False))
    network[1].weight = network[0].weight.requires_grad_(False)
    values = {name: torch.ones_like(p) for name, p in network.named_parameters()}
    copied = _filled(network, values)
    assert isinstance(copied, torch.nn.Sequential)
    assert copied[0].weight is copied[1].weight and copied[0].weight is not network[0].weight
    assert (copied[0].weight == 1).all() and (copied[0].bias == 1).all()
    assert copied[0].bias.requires_grad and not copied[0].weight.requires_grad
