"""The loop: gradients, dtypes, averages, what stops it, and the command line on real files."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tests.training.runs import memory_data, small_recipe

import anyorder
from anyorder.cli.main import main
from anyorder.cli.train import _Bar
from anyorder.core.batch import dense_batch
from anyorder.core.errors import TrainingStopped, UserError
from anyorder.core.objective import Loss, Objective, TrainableModel, TrainingBatch
from anyorder.training.metrics import StepMetrics, read_metrics
from anyorder.training.optimizers import orthogonalize
from anyorder.training.trainer import Trainer


def trainer(folder: Path, name: str = "out", **changes: Mapping[str, Any]) -> Trainer:
    return Trainer(small_recipe(folder / name, **changes), data=memory_data(folder))


def losses(folder: Path, name: str, **changes: Mapping[str, Any]) -> list[float]:
    trainer(folder, name, **changes).run()
    return [line["loss"] for line in read_metrics(folder / name / "metrics.jsonl")]


def test_the_loss_is_cross_entropy_and_accumulation_changes_nothing(tmp_path: Path) -> None:
    found = trainer(tmp_path, run={"accumulation": 1})
    batch = found._data.train.batch(0, batch_size=4)
    counts = batch.targets_BT.sum(1)
    assert len(set(counts.tolist())) > 1, "a mean of means would not show"
    gradients = {}
    for accumulation in (1, 2, 4):
        one = trainer(tmp_path, run={"accumulation": accumulation})
        mean, extras = one._gradient(batch, 1)
        gradients[accumulation] = (mean, [p.grad for p in one._passes.trainee.network.parameters()])
        # The same in torch's own words, row by row.
        total = 0.0
        for tokens_T, targets_T in zip(batch.tokens_BT, batch.targets_BT, strict=True):
            hidden = one._passes.trainee.hidden(dense_batch(tokens_T[None]))
            logits = one._passes.trainee.logits(hidden)[:-1]
            rows = targets_T[1:]
            total += F.cross_entropy(logits[rows], tokens_T[1:][rows], reduction="sum").item()
        assert mean == pytest.approx(total / int(counts.sum()), rel=1e-6)
        assert extras["nats"] == pytest.approx(mean, rel=1e-6)
    whole = found._passes.loss(batch, found._generator(1, 0))
    own = torch.autograd.grad(
        whole.total / whole.weight, list(found._passes.trainee.network.parameters())
    )
    for ours, theirs in zip(gradients[1][1], own, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    half = trainer(tmp_path, run={"accumulation": 4, "dtype": "bfloat16"})
    half._gradient(batch, 1)
    for parameter, theirs in zip(half._passes.trainee.network.parameters(), own, strict=True):
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32
        assert (parameter.grad - theirs).norm() < 0.05 * theirs.norm()
    for accumulation in (2, 4):
        assert gradients[accumulation][0] == pytest.approx(gradients[1][0], rel=1e-6)
        for ours, theirs in zip(gradients[accumulation][1], gradients[1][1], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_steps_are_those_of_torchs_adamw(tmp_path: Path) -> None:
    """Three steps of the loop against a loop written out."""
    changes = {"run": {"steps": 3, "clip": 0.5}, "schedule": {"name": "constant", "warmup": 0}}
    reference = trainer(tmp_path, "reference", **changes)
    network = reference._passes.trainee.network
    named = list(network.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in named if "norm" not in n], "weight_decay": 0.1},
            {"params": [p for n, p in named if "norm" in n], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.9, 0.95),
    )
    for step in range(3):
        batch = reference._data.train.batch(step, batch_size=4)
        loss = reference._passes.loss(batch, reference._generator(step, 0))
        optimizer.zero_grad()
        (loss.total / loss.weight).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()
    ours = trainer(tmp_path, "ours", **changes)
    ours.run()
    for mine, theirs in zip(
        ours._passes.trainee.network.parameters(), network.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_muon_is_torchs_muon_on_hidden_matrices(tmp_path: Path) -> None:
    changes = {"optimizer": {"name": "muon", "learning_rate": 0.02}}
    run = trainer(tmp_path, **changes)
    name = "layers.0.mlp.down.weight"
    ours = run._passes.trainee.network.get_parameter(name)
    theirs = torch.nn.Parameter(ours.detach().clone())
    muon = torch.optim.Muon([theirs], lr=0.02, adjust_lr_fn="match_rms_adamw", weight_decay=0.1)
    for step in (1, 2, 3):
        run._gradient(run._data.train.batch(step, batch_size=4), step)
        assert ours.grad is not None
        theirs.grad = ours.grad.clone()
        run._optimizer.step(1.0)
        muon.step()
        # torch iterates in bfloat16, we in float32.
        update = 0.02 * 0.2 * 24**0.5
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=0.05 * update)


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_orthogonalize_keeps_singular_vectors(dtype: torch.dtype, off: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((6, 20), (20, 6)):
        matrix = torch.randn(shape, generator=generator)
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        inner = left.T @ orthogonalize(matrix.to(dtype)).float() @ right.T
        assert (inner - torch.diag(inner.diagonal())).abs().max() < off
        assert inner.diagonal().min() > 0.6 and inner.diagonal().max() < 1.3


def test_muon_treats_fused_matrices_one_by_one_and_leaves_the_embedding(tmp_path: Path) -> None:
    run = trainer(tmp_path, optimizer={"name": "muon", "weight_decay": 0.0})
    parameter = run._passes.trainee.network.get_parameter("layers.1.attention.qkv.weight")
    before = parameter.detach().clone()
    run._gradient(run._data.train.batch(0, batch_size=4), 1)
    run._optimizer.step(1.0)
    update = (parameter.detach() - before) / -0.01
    for part, rows in zip(update.split([16, 8, 8]), (16, 8, 8), strict=True):
        values = torch.linalg.svdvals(part) / (0.2 * max(rows, 16) ** 0.5)
        assert values.min() > 0.3 and values.max() < 1.3
    kinds = {key.rpartition("/")[0]: key.rpartition("/")[2] for key in run._optimizer.state()}
    assert kinds["embedding.weight"] != "momentum" == kinds["layers.1.attention.qkv.weight"]


def test_what_decays_and_what_muon_takes(tmp_path: Path) -> None:
    """Matrices decay, norms and biases do not; tied weights are one parameter."""
    learned = {"positions": "learned", "kv_heads": None}
    for tied in (True, False):
        run = trainer(tmp_path, model={**learned, "tied_embeddings": tied})
        decayed, others = run._optimizer._adamw.param_groups
        assert decayed["weight_decay"] == 0.1 and others["weight_decay"] == 0.0
        assert {p.dim() for p in decayed["params"]} == {2} and len(others["params"]) == 18
        names = [run._optimizer._names[p] for p in decayed["params"]]
        assert names.count("embedding.weight") == 1 and "positions.weight" in names
        assert ("head.weight" in names) is not tied
    rows = {"name": "muon", "weight_decay": 0.0}
    run = trainer(tmp_path, model=learned, optimizer=rows)
    assert all(not group["weight_decay"] for group in run._optimizer._adamw.param_groups)
    taken = {run._optimizer._names[matrix] for matrix in run._optimizer._muon.state}
    parts = ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
    assert taken == {f"layers.{layer}.{part}.weight" for layer in (0, 1) for part in parts}


def test_muon_may_take_all_and_nothing_that_is_frozen(tmp_path: Path) -> None:
    data = memory_data(tmp_path)
    base = Trainer(small_recipe(tmp_path / "base"), data=data).run()
    sizes = dict.fromkeys(("width", "layers", "heads", "kv_heads", "mlp_width", "context"))
    recipe = small_recipe(
        tmp_path / "out",
        model={**sizes, "init": str(base)},
        data={"vocabulary": None},
        adapter={"rank": 2},
        optimizer={"name": "muon"},
    )
    run = Trainer(recipe, data=data)
    assert not any(group["params"] for group in run._optimizer._adamw.param_groups)
    assert len(run._optimizer._muon.state) == len(dict(run._passes.parameters())) == 28
    run.run()


def test_the_running_mean_of_the_weights(tmp_path: Path) -> None:
    changes = {"run": {"ema": 0.5, "steps": 3}}
    run = trainer(tmp_path, **changes)
    means = {name: p.detach().clone() for name, p in run._passes.trainee.network.named_parameters()}
    seen = []
    run._watch = lambda metrics: seen.append(
        {name: p.detach().clone() for name, p in run._passes.trainee.network.named_parameters()}
    )
    run.run()
    for step, weights in enumerate(seen, 1):
        decay = min(0.5, step / (10 + step))
        means = {name: decay * means[name] + (1 - decay) * weights[name] for name in means}
    model = load_file(tmp_path / "out" / "model" / "model.safetensors")
    torch.testing.assert_close(model["model.embed_tokens.weight"], means["embedding.weight"])
    assert not torch.equal(means["embedding.weight"], run._passes.trainee.network.embedding.weight)


@pytest.mark.parametrize("objective", ["next_token", "masked_diffusion"])
def test_bfloat16_comes_close_to_float32(tmp_path: Path, objective: str) -> None:
    changes: dict[str, dict[str, Any]] = {"objective": {"name": objective}}
    exact = losses(tmp_path, "exact", **changes)
    rounded = losses(tmp_path, "rounded", **changes, run={"dtype": "bfloat16"})
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.02)
    for path in (tmp_path / "rounded" / "checkpoints").rglob("*.safetensors"):
        assert all(tensor.dtype == torch.float32 for tensor in load_file(path).values())


def test_it_learns_and_validation_repeats(tmp_path: Path) -> None:
    run = trainer(tmp_path, run={"steps": 60}, optimizer={"learning_rate": 0.03})
    before = run.validate()
    assert before == run.validate() and before is not None
    run.run()
    after = read_metrics(tmp_path / "out" / "metrics.jsonl")[-1]
    # 40 equally likely tokens among 258: from near ln 258 to near ln 40.
    assert before == pytest.approx(math.log(258), rel=0.02)
    assert after["validation_loss"] < 4.2 and after["loss"] < 4.0


def test_nothing_held_out(tmp_path: Path) -> None:
    data = memory_data(tmp_path, held_out=False)
    run = Trainer(small_recipe(tmp_path / "out"), data=data)
    assert run.validate() is None
    run.run()
    lines = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert all("validation_loss" not in line for line in lines)


# --------------------------------------------------------------------------------- what stops it
@dataclass(frozen=True, kw_only=True)
class Scripted(Objective):
    """Losses told beforehand, by the number of calls."""

    values: tuple[float, ...]
    calls: list[int]

    def loss(self, model: TrainableModel, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        value = self.values[len(self.calls)]
        self.calls.append(1)
        if value < 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        logits = model.logits(model.hidden(dense_batch(batch.tokens_BT)))
        return Loss(total=logits.sum() * 0.0 + value, weight=1.0 if value else 0.0)


def scripted(folder: Path, *values: float, **run: Any) -> Trainer:
    recipe = small_recipe(folder / "out", run={"validate_every": 100, **run})
    recipe = replace(recipe, objective=Scripted(values=values, calls=[]))
    object.__setattr__(recipe, "fields", dict)
    return Trainer(recipe, data=memory_data(folder, held_out=False))


def test_nan_stops_with_step_checkpoint_and_advice(tmp_path: Path) -> None:
    run = scripted(tmp_path, 1.0, 1.0, 1.0, math.nan)
    message = r"stopped at step 4: the loss is nan; .*step-00000003\. Lower learning_rate"
    with pytest.raises(TrainingStopped, match=message):
        run.run()
    assert [line["step"] for line in read_metrics(tmp_path / "out" / "metrics.jsonl")] == [1, 2, 3]


def test_divergence_stops_and_noise_does_not(tmp_path: Path) -> None:
    run = scripted(tmp_path, 3.0, 5.0, 3.0, 5.0, 3.0, 5.0, 3.0, 3.0)
    run.run()
    (tmp_path / "again").mkdir()
    run = scripted(tmp_path / "again", *[3.0] * 3, *[9.0] * 5)
    # 3 + 6 (1 - 0.9^n) exceeds 5 at n = 4.
    message = r"step 7: the loss diverges: 5\.063 over the last steps after 3"
    with pytest.raises(TrainingStopped, match=message):
        run.run()


def test_no_checkpoint_yet_no_target_and_no_memory(tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped, match=r"step 1: the loss is inf; there is no checkpoint"):
        scripted(tmp_path, math.inf).run()
    with pytest.raises(TrainingStopped, match=r"step 1: no token of the batch is a target"):
        scripted(tmp_path, 0.0).run()
    message = r"4 sequences of 12 tokens does not fit into memory; raise \[run\] accumulation"
    with pytest.raises(UserError, match=message):
        scripted(tmp_path, -1.0).run()


# ------------------------------------------------------------------------- what does not fit
def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    data = memory_data(tmp_path)
    Trainer(small_recipe(tmp_path / "out"), data=data).run()
    init = str(tmp_path / "out" / "model")
    sizes: dict[str, Any] = dict.fromkeys(
        ("width", "layers", "heads", "kv_heads", "mlp_width", "context")
    )
    own: dict[str, Any] = {"vocabulary": None}

    def tuned(name: str, **changes: Mapping[str, Any]) -> Trainer:
        model = {**sizes, "init": init}
        recipe = small_recipe(tmp_path / name, **{"model": model, "data": own, **changes})
        return Trainer(recipe, data=data)

    start, goal = tuned("tuned"), load_file(Path(init) / "model.safetensors")
    weight = start._passes.trainee.network.embedding.weight
    assert torch.equal(weight, goal["model.embed_tokens.weight"]), "fine-tuning starts there"
    start.run()
    assert read_metrics(tmp_path / "tuned" / "metrics.jsonl")[0]["loss"] < math.log(258)
    with pytest.raises(UserError, match=r"length is 33, but the context of .* is 32 tokens"):
        tuned("long", data={**own, "length": 33})
    config = json.loads((Path(init) / "config.json").read_text())
    weights = {**goal, "model.embed_tokens.weight": goal["model.embed_tokens.weight"][:200]}
    save_file(weights, Path(init) / "model.safetensors", metadata={"format": "pt"})
    (Path(init) / "config.json").write_text(json.dumps({**config, "vocab_size": 200}))
    with pytest.raises(UserError, match=r"the tokenizer has 258 tokens, but .* has 200"):
        tuned("small")


def test_a_mask_token_is_asked_for(tmp_path: Path) -> None:
    data = memory_data(tmp_path)
    text = (data.tokenizer_folder / "tokenizer.json").read_text().replace("<|mask|>", "<|other|>")
    (data.tokenizer_folder / "tokenizer.json").write_text(text)
    (data.tokenizer_folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    recipe = small_recipe(tmp_path / "out", objective={"name": "masked_diffusion"})
    with pytest.raises(UserError, match="needs a mask token"):
        Trainer(recipe, data=data)


# ------------------------------------------------------------------------------ from a recipe file
RECIPE = """
[model]
width = 16
layers = 1
heads = 2
[data]
sources = [{path = "texts/*.txt", format = "paragraphs"}, "more.jsonl"]
length = 16
validation = 0.25
vocabulary = 270
[objective]
name = "next_token"
[optimizer]
learning_rate = 0.01
[run]
steps = 4
batch_size = 2
validate_every = 2
"""


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with its texts, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    words = "It is a truth universally acknowledged that number {} is in want of a wife.\n\n"
    (tmp_path / "texts" / "a.txt").write_text("".join(words.format(n) for n in range(40)))
    rows = (json.dumps({"text": f"Row {n} of the table."}) + "\n" for n in range(10))
    (tmp_path / "more.jsonl").write_text("".join(rows))
    (tmp_path / "small.toml").write_text(RECIPE)
    return tmp_path / "small.toml"


def test_the_command_line(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "small.toml", "--plot", "curves.svg"]) == 0
    out, err = capsys.readouterr()
    assert out == "runs/small/model\n"
    assert "step 4 of 4: loss 5." in err and "validation 5." in err and "tokens/s" in err
    picture = xml.etree.ElementTree.parse("curves.svg").getroot()
    lines = [e for e in picture.iter() if e.tag.endswith("polyline") and e.get("stroke")]
    assert [len(str(line.get("points")).split()) for line in lines] == [4, 2, 4]
    engine = anyorder.Engine(out.strip(), dtype="float32")
    text = engine.generate("It is", max_new_tokens=4, temperature=0.0)
    assert len(text.tokens) == 4
    # Nothing is left to do, and nothing is done.
    before = Path("runs/small/metrics.jsonl").read_text()
    assert main(["train", "small.toml"]) == 0
    assert Path("runs/small/metrics.jsonl").read_text() == before
    assert "going on after step 4 of 4" in capsys.readouterr().err
    assert main(["train", "small.toml", "--output", "elsewhere"]) == 0
    assert [line["loss"] for line in read_metrics(Path("elsewhere/metrics.jsonl"))] == [
        line["loss"] for line in read_metrics(Path("runs/small/metrics.jsonl"))
    ]


def test_mistakes_on_the_command_line(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        assert main(["train", *arguments]) == 2
        return capsys.readouterr().err

    assert "cannot read the recipe none.toml" in refused("none.toml")
    assert "ending in .svg" in refused("small.toml", "--plot", "curves.png")
    recipe_file.write_text(RECIPE.replace("more.jsonl", "less.jsonl"))
    assert "less.jsonl' is no file or folder" in refused("small.toml")
    recipe_file.write_text(RECIPE.replace("270", "9000"))
    assert "give more text or ask for a smaller vocabulary" in refused("small.toml")
    recipe_file.write_text(RECIPE)
    assert main(["train", "small.toml"]) == 0
    with Path("more.jsonl").open("a") as file:
        file.write('{"text": "One more."}\n')
    assert "the data have changed since runs/small was begun" in refused("small.toml")
    recipe_file.write_text(RECIPE.replace("270", "280"))
    assert "[data] vocabulary is 280, and was 270" in refused("small.toml")


def test_the_bar_shows_loss_speed_and_validation(capsys: pytest.CaptureFixture[str]) -> None:
    bar = _Bar(20)
    for step in (1, 20):
        bar.show(
            StepMetrics(
                step=step,
                loss=2.5,
                learning_rate=0.1,
                gradient_norm=1.0,
                tokens_per_second=1234.0,
                validation_loss=3.25 if step == 20 else None,
            )
        )
    bar.close()
    shown = capsys.readouterr().err
    assert "20/20" in shown and "loss 2.5000, validation 3.2500, 1,234 tokens/s" in shown
