"""Checkpoints: exact resume after every kind of end, and failing writes that harm nothing."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.runs import memory_data, small_recipe

from anyorder.core.errors import CheckpointError, UserError
from anyorder.training.checkpoints import Checkpoint, latest, read_checkpoint, save_checkpoint
from anyorder.training.metrics import StepMetrics, read_metrics
from anyorder.training.trainer import Trainer

CHANGES: dict[str, dict[str, Any]] = {
    "optimizer": {"name": "muon"},
    "objective": {"name": "masked_diffusion"},
    "run": {"ema": 0.9, "accumulation": 2},
}
"""Everything that has a state, and an objective that draws."""


class Crash(BaseException):
    """Stands in for the end of the process between two steps."""


def curve(output: Path) -> list[dict[str, Any]]:
    """The metrics but for the speed."""
    lines = read_metrics(output / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]


def train(folder: Path, output: str, *, crash_after: int = 0) -> list[dict[str, Any]]:
    def watch(metrics: StepMetrics) -> None:
        if metrics.step == crash_after:
            raise Crash

    recipe = small_recipe(folder / output, **CHANGES)
    trainer = Trainer(recipe, data=memory_data(folder), watch=watch)
    trainer.run()
    return curve(folder / output)


def test_a_run_that_ends_at_any_step_goes_on_exactly(tmp_path: Path) -> None:
    whole = train(tmp_path, "whole")
    assert [line["step"] for line in whole] == list(range(1, 9))
    assert [line["step"] for line in whole if "validation_loss" in line] == [4, 8]
    weights = load_file(tmp_path / "whole" / "model" / "model.safetensors")
    for step in range(1, 9):
        with pytest.raises(Crash):
            train(tmp_path, f"crashed{step}", crash_after=step)
        assert train(tmp_path, f"crashed{step}") == whole
        again = load_file(tmp_path / f"crashed{step}" / "model" / "model.safetensors")
        assert all(torch.equal(again[name], weights[name]) for name in weights)


SCRIPT = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.training.test_checkpoints import CHANGES
from tests.training.runs import memory_data, small_recipe
from anyorder.training.trainer import Trainer
folder = Path(sys.argv[1])
recipe = small_recipe(folder / "killed", **CHANGES)
Trainer(recipe, data=memory_data(folder), watch=lambda metrics: time.sleep(0.1)).run()
"""


def test_kill_9_in_the_middle(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = train(tmp_path, "whole")
        metrics = tmp_path / "killed" / "metrics.jsonl"
        root = Path(__file__).parents[2]
        command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
        with subprocess.Popen(command, cwd=root) as process:
            while process.poll() is None and len(read_metrics(metrics)) < 5:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert 5 <= len(read_metrics(metrics)) < 8
        with metrics.open("a") as file:
            file.write('{"step": 8, "lo')  # the half line that a kill may leave
        assert train(tmp_path, "killed") == whole
    finally:
        torch.set_num_threads(threads)


def small_checkpoint(step: int) -> Checkpoint:
    return Checkpoint(
        step=step,
        recipe={"run": {"steps": 3}},
        data="0123",
        watch={"smoothed": 0.1, "lowest": 1 / 3},
        weights={"a.weight": torch.randn(100, 100), "b": torch.tensor(2.0)},
        optimizer={"a.weight/step": torch.tensor(7.0)},
        ema={},
    )


def test_a_checkpoint_holds_what_it_was_given_without_pickle(tmp_path: Path) -> None:
    given = small_checkpoint(12)
    save_checkpoint(tmp_path, given)
    place = latest(tmp_path)
    assert place is not None
    found = read_checkpoint(place)
    assert (found.step, found.recipe, found.watch) == (12, given.recipe, given.watch)
    assert found.data == "0123"
    assert torch.equal(found.weights["a.weight"], given.weights["a.weight"])
    assert found.optimizer["a.weight/step"] == 7.0 and not found.ema
    assert {path.suffix for path in place.iterdir()} == {".safetensors", ".json"}


def test_only_the_last_is_kept_and_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    assert latest(tmp_path / "none") is None
    for step in (9, 10, 100_000_000):
        save_checkpoint(tmp_path, small_checkpoint(step))
        assert [path.name for path in tmp_path.iterdir()] == [f"step-{step:08d}"]


@contextmanager
def disk_full_after(num_bytes: int) -> Iterator[None]:
    """Files of this process cannot grow beyond so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("num_bytes", [0, 20_000])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, num_bytes: int) -> None:
    first = small_checkpoint(1)
    save_checkpoint(tmp_path, first)
    with disk_full_after(num_bytes), pytest.raises(UserError, match=r"cannot save .*step-00000002"):
        save_checkpoint(tmp_path, small_checkpoint(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    place = latest(tmp_path)
    assert place is not None
    assert torch.equal(read_checkpoint(place).weights["a.weight"], first.weights["a.weight"])


def test_a_run_that_fills_the_disk_goes_on_exactly_when_there_is_space(tmp_path: Path) -> None:
    whole = train(tmp_path, "whole")
    data = memory_data(tmp_path)
    recipe = small_recipe(tmp_path / "full", **CHANGES)
    run = Trainer(recipe, data=data)
    with ExitStack() as stack:

        def fill(metrics: StepMetrics) -> None:
            if metrics.step == 4:
                stack.enter_context(disk_full_after(20_000))

        run._watch = fill
        with pytest.raises(UserError, match=r"cannot save .*step-00000006.*Free some space"):
            run.run()
    assert latest(tmp_path / "full" / "checkpoints") == (
        tmp_path / "full" / "checkpoints" / "step-00000003"
    )
    assert not (tmp_path / "full" / "model").exists()
    assert train(tmp_path, "full") == whole


def test_what_a_killed_save_leaves_is_no_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, small_checkpoint(1))
    partial = tmp_path / ".step-00000002.partial"
    partial.mkdir()
    (partial / "weights.safetensors").write_bytes(b"half")
    assert latest(tmp_path) == tmp_path / "step-00000001"
    save_checkpoint(tmp_path, small_checkpoint(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_damaged_and_foreign_checkpoints(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, small_checkpoint(1))
    place = tmp_path / "step-00000001"
    os.truncate(place / "optimizer.safetensors", 20)
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors is damaged"):
        read_checkpoint(place)
    state = json.loads((place / "state.json").read_text())
    (place / "state.json").write_text(json.dumps({**state, "format": 99}))
    with pytest.raises(CheckpointError, match="checkpoint format 99"):
        read_checkpoint(place)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    data = memory_data(tmp_path)
    Trainer(small_recipe(tmp_path / "out"), data=data).run()
    other = small_recipe(tmp_path / "out", optimizer={"beta2": 0.5})
    message = r"another recipe: \[optimizer\] beta2 is 0\.5, and was 0\.95"
    with pytest.raises(CheckpointError, match=message):
        Trainer(other, data=data)
