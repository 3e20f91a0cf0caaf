"""Whole runs of the objectives that rearrange texts, replace their tokens or write their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.small_tokenizers import CORPUS
from tests.training.runs import memory_data, small_recipe

from anyorder.core.errors import UserError
from anyorder.core.objective import Loss, TrainableModel, TrainingBatch
from anyorder.model.tokenizer import Tokenizer
from anyorder.training.metrics import read_metrics
from anyorder.training.objectives.scheduled_sampling import ScheduledSampling
from anyorder.training.passes import Passes
from anyorder.training.setup import make_trainee
from anyorder.training.team import Team
from anyorder.training.trainer import Trainer

OBJECTIVES: list[dict[str, Any]] = [
    {"name": "scheduled_sampling", "final": 0.9, "prediction": "mixed", "through": "all"},
    {"name": "policy_gradient", "reward": {"name": "length", "tokens": 3}, "num_samples": 2},
    {"name": "adversarial", "channels": 4},
    {"name": "adversarial", "channels": 4, "estimator": "straight_through"},
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective["name"])
def test_a_resumed_run_is_the_whole_run(objective: dict[str, Any], tmp_path: Path) -> None:
    data = memory_data(tmp_path)
    run: dict[str, Any] = {"steps": 4, "checkpoint_every": 2, "batch_size": 4, "accumulation": 2}
    recipe = {"objective": objective, "run": run}
    whole = Trainer(small_recipe(tmp_path / "whole", **recipe), data=data)
    whole.run()

    class Killed(Exception):
        pass

    def kill(metrics: Any) -> None:
        if metrics.step == 3:
            raise Killed

    with pytest.raises(Killed):
        Trainer(small_recipe(tmp_path / "cut", **recipe), data=data, watch=kill).run()
    again = Trainer(small_recipe(tmp_path / "cut", **recipe), data=data)
    assert again.step == 2
    again.run()
    lines = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut")]
    for line in (*lines[0], *lines[1]):
        del line["tokens_per_second"]
    assert lines[0] == lines[1] and len(lines[0]) == 4
    assert "nats" in lines[0][0] and "validation_loss" in lines[0][-1]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective["name"])
def test_passes_in_bfloat16(objective: dict[str, Any], tmp_path: Path) -> None:
    run: dict[str, Any] = {"steps": 2, "dtype": "bfloat16"}
    trainer = Trainer(
        small_recipe(tmp_path / "run", objective=objective, run=run), data=memory_data(tmp_path)
    )
    assert (trainer.run() / "config.json").exists()


@pytest.mark.parametrize("objective", OBJECTIVES[1:3], ids=lambda objective: objective["name"])
def test_processes_cannot_draw_texts_side_by_side(
    objective: dict[str, Any], tmp_path: Path
) -> None:
    recipe = small_recipe(tmp_path / "run", objective=objective)
    trainee = make_trainee(recipe, memory_data(tmp_path), torch.device("cpu"))
    name = objective["name"]
    with pytest.raises(UserError, match=f"{name} draws texts, which 2 processes"):
        Passes(trainee, recipe, torch.device("cpu"), Team(size=2))


def test_progress_goes_from_nothing_to_almost_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And validation is at nothing, whenever it is."""
    seen: list[tuple[bool, float]] = []
    plain = ScheduledSampling.loss

    def spy(
        self: ScheduledSampling, model: TrainableModel, batch: TrainingBatch, rng: torch.Generator
    ) -> Loss:
        seen.append((torch.is_grad_enabled(), batch.progress))
        return plain(self, model, batch, rng)

    monkeypatch.setattr(ScheduledSampling, "loss", spy)
    run = {"steps": 4, "validate_every": 2, "accumulation": 2}
    recipe = small_recipe(tmp_path / "run", objective={"name": "scheduled_sampling"}, run=run)
    Trainer(recipe, data=memory_data(tmp_path)).run()
    assert [progress for learns, progress in seen if learns] == [
        0.0, 0.0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75,
    ]  # fmt: skip
    assert {progress for learns, progress in seen if not learns} == {0.0}


def test_a_trained_tokenizer_has_what_infilling_needs(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(CORPUS * 20))
    data = {"sources": [{"path": str(tmp_path / "text.txt"), "format": "paragraphs"}]}
    recipe = small_recipe(
        tmp_path / "run",
        objective={"name": "span_infill", "rate": 1.0},
        data={**data, "vocabulary": 300, "validation": 0.0},
        run={"steps": 3, "batch_size": 4},
    )
    folder = Trainer(recipe).run()
    assert Tokenizer.from_folder(folder).infill_tokens == (2, 3, 4)
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 3


def test_other_tokenizers_are_refused_for_infilling(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path / "run", objective={"name": "span_infill"})
    with pytest.raises(UserError, match="span_infill needs the control tokens <fim_prefix>"):
        Trainer(recipe, data=memory_data(tmp_path))
