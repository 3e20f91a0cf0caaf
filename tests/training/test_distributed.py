"""Two processes come to what one comes to, with equal checkpoints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import tiny_config
from tests.training.giving_up import give_up
from tests.training.runs import memory_data, small_recipe, train_cases

from anyorder.cli.main import main
from anyorder.core.errors import TrainingStopped, UserError
from anyorder.model.transformer import Transformer
from anyorder.training.adapters import adapt
from anyorder.training.checkpoints import read_checkpoint
from anyorder.training.distributed import launch, team_of
from anyorder.training.metrics import read_metrics
from anyorder.training.sections import AdapterRecipe
from anyorder.training.sharding import shard
from anyorder.training.team import Team
from anyorder.training.trainer import Trainer

EVERYTHING = {"accumulation": 2, "ema": 0.9, "clip": 0.5}
SHORT = {"steps": 4, "checkpoint_every": 2, "validate_every": 2}
CASES: dict[str, dict[str, Any]] = {
    # Noise, a running mean, clipping, two passes a step.
    "sharded": {"objective": {"name": "masked_diffusion"}, "run": EVERYTHING},
    "muon": {"optimizer": {"name": "muon"}, "run": {"accumulation": 4}},
    "tensor": {"model": {"kv_heads": 2}, "run": {"tensor_parallel": 2, "ema": 0.9, "clip": 0.5}},
    "learned": {
        "model": {"kv_heads": None, "positions": "learned", "tied_embeddings": False},
        "run": {"tensor_parallel": 2, "clip": None},
    },
    "rounded": {"run": {"accumulation": 2, "dtype": "bfloat16", "checkpoint_layers": True}},
}


def curve(output: Path, name: str) -> list[float]:
    return [line[name] for line in read_metrics(output / "metrics.jsonl") if name in line]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases, each trained by two processes and by one. `resumed` is begun by one."""
    folder = tmp_path_factory.mktemp("cases")
    cases: dict[str, dict[str, Any]] = {
        name: {**changes, "run": {**SHORT, **changes["run"]}} for name, changes in CASES.items()
    }
    cases["resumed"] = cases["sharded"]

    def stop(metrics: Any) -> None:
        if metrics.step == 3:
            raise KeyboardInterrupt

    data = memory_data(folder)
    recipe = small_recipe(folder / "two" / "resumed", **cases["resumed"])
    with pytest.raises(KeyboardInterrupt):
        Trainer(recipe, data=data, watch=stop).run()
    assert launch(train_cases, 2, folder, cases) == "done"
    for name, changes in CASES.items():
        run = {**SHORT, **changes["run"], "tensor_parallel": 1}
        recipe = small_recipe(folder / "one" / name, **{**changes, "run": run})
        Trainer(recipe, data=data).run()
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_have_the_curves_of_one(outputs: Path, name: str) -> None:
    # float32 sums in another order; bfloat16 rounds them too.
    tolerance = 1e-3 if name == "rounded" else 2e-5
    for metric in ("loss", "validation_loss", "gradient_norm"):
        one, two = (curve(outputs / count / name, metric) for count in ("one", "two"))
        assert len(one) == (2 if metric == "validation_loss" else 4)
        assert two == pytest.approx(one, rel=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_checkpoints_and_models_do_not_show_how_many_processes_wrote_them(
    outputs: Path, name: str
) -> None:
    tolerance = {"rtol": 0.1, "atol": 0.01} if name == "rounded" else {"rtol": 0.001, "atol": 2e-05}
    places = [outputs / count / name for count in ("one", "two")]
    one, two = (read_checkpoint(place / "checkpoints" / "step-00000004") for place in places)
    for part in ("weights", "optimizer", "ema"):
        ours, theirs = getattr(one, part), getattr(two, part)
        assert set(ours) == set(theirs)
        for key, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[key], **tolerance)
    ours, theirs = (load_file(place / "model" / "model.safetensors") for place in places)
    assert set(ours) == set(theirs)
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[key], **tolerance)


def test_a_run_goes_on_with_another_number_of_processes(outputs: Path) -> None:
    steps = [line["step"] for line in read_metrics(outputs / "two" / "resumed" / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4]
    one = curve(outputs / "one" / "sharded", "loss")
    assert curve(outputs / "two" / "resumed", "loss") == pytest.approx(one, rel=2e-5)


def test_what_one_process_cannot_do_is_refused(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, run={"tensor_parallel": 2})
    with (
        pytest.raises(UserError, match=r"tensor_parallel is 2, but the run has one process"),
        team_of(recipe),
    ):
        pass
    for options in ({}, {"batch_size": 6, "accumulation": 3}):
        with pytest.raises(UserError, match=r"cannot be dealt evenly to 2 processes"):
            Trainer(small_recipe(tmp_path, run=options), team=Team(size=2))
    with pytest.raises(UserError, match=r"matrices that muon needs whole"):
        small_recipe(tmp_path, run={"tensor_parallel": 2}, optimizer={"name": "muon"})


def test_every_process_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    recipe = small_recipe(tmp_path, run={"device": "cuda"})
    with (
        pytest.raises(UserError, match=r"2 processes need a GPU each, and there are 1; give fewer"),
        team_of(recipe, rank=0, size=2, meeting=tmp_path / "meeting"),
    ):
        pass


def test_matrices_that_cannot_be_split_are_refused() -> None:
    two = Team(size=2, tensor=2)
    for changes in ({"num_kv_heads": 1}, {"mlp_width": 49}, {"qk_norm": "head"}, {"alibi": True}):
        network = Transformer(tiny_config(**changes))
        with pytest.raises(UserError, match=r"tensor_parallel = 2 must divide key/value heads \("):
            shard(network, network, [], two, dtype=torch.float32)
    network = Transformer(tiny_config())
    adapt(network, AdapterRecipe(), seed=0)
    with pytest.raises(UserError, match=r"of a decoder without adapters, experts"):
        shard(network, network, [], two, dtype=torch.float32)
    with pytest.raises(UserError, match=r"tensor_parallel is for decoders"):
        shard(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), [], two, dtype=torch.float32)


RECIPE = """
[model]
width = 16
layers = 1
heads = 2
kv_heads = 1
[data]
sources = ["text.txt"]
length = 16
validation = 0.0
vocabulary = 270
[objective]
name = "next_token"
[optimizer]
learning_rate = 0.01
[run]
steps = 3
batch_size = 4
"""


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with its text, in the current folder."""
    monkeypatch.chdir(tmp_path)
    line = "It is a truth universally acknowledged that number {} is in want of a wife.\n\n"
    (tmp_path / "text.txt").write_text("".join(line.format(number) for number in range(60)))
    (tmp_path / "small.toml").write_text(RECIPE + "accumulation = 2\n")
    return tmp_path / "small.toml"


def test_the_command_line_starts_processes(
    recipe_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "small.toml", "--processes", "2", "--plot", "curve.svg"]) == 0
    out, err = capfd.readouterr()
    assert "Terminating" not in err
    assert out == "runs/small/model\n" and err.count("step 3 of 3") == 1
    assert Path("curve.svg").exists()
    assert main(["train", "small.toml", "--output", "alone"]) == 0
    alone, together = curve(Path("alone"), "loss"), curve(Path("runs/small"), "loss")
    assert len(alone) == 3 and together == pytest.approx(alone, rel=2e-5)
    assert main(["train", "small.toml", "--processes", "0"]) == 2
    assert "--processes must be at least 1, got 0" in capfd.readouterr().err


@pytest.mark.slow
def test_torchrun_starts_processes(recipe_file: Path) -> None:
    """And tensor parallelism of two groups."""
    recipe_file.write_text(
        RECIPE.replace("kv_heads = 1", "") + "accumulation = 2\ntensor_parallel = 2\n"
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "4",
    ]
    subprocess.run([*command, "-m", "anyorder.cli.main", "train", "small.toml"], check=True)
    recipe_file.write_text(RECIPE.replace("kv_heads = 1", "") + "accumulation = 2\n")
    assert main(["train", "small.toml", "--output", "alone"]) == 0
    alone, together = curve(Path("alone"), "loss"), curve(Path("runs/small"), "loss")
    assert together == pytest.approx(alone, rel=2e-5)


def test_what_stops_one_process_stops_all() -> None:
    with pytest.raises(TrainingStopped, match=r"^process 1 of 2 gives up$"):
        launch(give_up, 2, "TrainingStopped")
