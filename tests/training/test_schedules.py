"""Learning rates: against torch's schedulers and the formula of the Transformer paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from anyorder.training.schedules import factor
from anyorder.training.sections import ScheduleRecipe

STEPS = 40


def factors(**fields: Any) -> list[float]:
    schedule = ScheduleRecipe(**fields)
    return [factor(schedule, step, STEPS) for step in range(1, STEPS + 1)]


def test_cosine_is_that_of_torch() -> None:
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    # torch sets the rate of step 1 when the scheduler is made.
    rise = LinearLR(optimizer, start_factor=1 / 10, end_factor=1.0, total_iters=9)
    fall = CosineAnnealingLR(optimizer, T_max=30, eta_min=0.1)
    scheduler = SequentialLR(optimizer, [rise, fall], milestones=[9])
    expected = []
    for _ in range(STEPS):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert factors(name="cosine", warmup=10, final=0.1) == pytest.approx(expected, abs=1e-6)


def test_noam_is_the_papers_formula_scaled_to_1() -> None:
    def formula(step: int) -> float:
        return 512**-0.5 * min(step**-0.5, step * 10**-1.5)

    expected = [formula(step) / formula(10) for step in range(1, STEPS + 1)]
    assert factors(name="noam", warmup=10) == pytest.approx(expected)


def test_wsd_rises_stays_and_falls_in_straight_lines() -> None:
    found = factors(name="wsd", warmup=5, decay=0.25, final=0.2)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[5:30] == [1.0] * 25
    assert found[30:] == pytest.approx([1.0 - 0.08 * n for n in range(1, 11)])


def test_constant_stays_after_the_warm_up() -> None:
    assert factors(name="constant", warmup=4) == [0.25, 0.5, 0.75] + [1.0] * 37
    assert factors(name="constant") == [1.0] * STEPS


def test_no_decay_and_no_room_for_one() -> None:
    assert factors(name="wsd", decay=0.0) == [1.0] * STEPS
    assert factor(ScheduleRecipe(name="cosine", warmup=9, final=0.0), 9, 9) == 1.0
