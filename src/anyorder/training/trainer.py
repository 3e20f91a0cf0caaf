"""The training loop: plain PyTorch over the network that inference runs.

A run is a function of its recipe: every step's data and noise depend on the recipe's seed and the
step alone, and a checkpoint holds everything else, so that on a CPU a run that was killed and
started again goes through exactly the numbers of one that was not. On a GPU some sums are added in
another order every time. One process; weights and optimiser are float32, arithmetic by the recipe.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from anyorder.core.errors import CheckpointError, TrainingStopped, UserError
from anyorder.core.objective import TrainingBatch
from anyorder.model.settings import settings
from anyorder.training import checkpoints
from anyorder.training.checkpoints import Checkpoint
from anyorder.training.config import Recipe, difference
from anyorder.training.metrics import MetricsFile, StepMetrics
from anyorder.training.optimizers import Optimizer
from anyorder.training.passes import Passes, named_parameters, split
from anyorder.training.schedules import factor
from anyorder.training.setup import TrainingData, make_trainee
from anyorder.training.sources import open_data
from anyorder.training.token_store import Progress

_SMOOTHING = 0.9
"""Memory of the loss that is watched for divergence."""
_ADVICE = (
    "Lower learning_rate, raise warmup or lower clip, look at the data of that step, and train "
    "into another output folder."
)


class Trainer:
    """One run of a recipe, begun or gone on with."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        data: TrainingData | None = None,
        watch: Callable[[StepMetrics], None] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """`data`: other than what the recipe's [data] names. `watch` is told of every step,
        `progress` of how the data are prepared.

        Raises UserError for whatever keeps the recipe from being trained."""
        assert recipe.run.output is not None, "a recipe is given its output folder before it runs"
        self.recipe = recipe
        self.output = Path(recipe.run.output)
        self.step = 0
        """Steps done."""
        threads = settings().num_threads
        if threads is not None:
            torch.set_num_threads(threads)
        found = checkpoints.latest(self.output / "checkpoints")
        checkpoint = None if found is None else checkpoints.read_checkpoint(found)
        if checkpoint is not None:
            self._compare(checkpoint)
        kind = recipe.run.device
        if kind == "auto":
            kind = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(kind)
        if data is None:
            data = open_data(recipe, self.output, resumed=checkpoint is not None, progress=progress)
        if checkpoint is not None and checkpoint.data != data.fingerprint:
            raise CheckpointError(
                f"the data have changed since {self.output} was begun; bring the old ones back, or "
                "give another output folder."
            )
        self._data = data
        self._trainee = make_trainee(recipe, data, self._device)
        self._passes = Passes(
            self._trainee, recipe.objective, dtype=getattr(torch, recipe.run.dtype)
        )
        self._optimizer = Optimizer(self._trainee, recipe.optimizer)
        self._ema: dict[str, torch.Tensor] = {}
        if recipe.run.ema is not None:
            self._ema = {name: p.detach().clone() for name, p in self._parameters()}
        self._watch = watch
        self._smoothed, self._lowest = math.nan, math.inf
        if checkpoint is not None:
            self._restore(checkpoint)

    def run(self) -> Path:
        """Train what is left to train; returns the folder of the finished model."""
        run = self.recipe.run
        self.output.mkdir(parents=True, exist_ok=True)
        metrics = MetricsFile(self.output / "metrics.jsonl", done=self.step)
        try:
            while self.step < run.steps:
                line = self._train_step(self.step + 1)
                self.step += 1
                metrics.write(line)
                if self._watch is not None:
                    self._watch(line)
                if self.step % run.checkpoint_every == 0 or self.step == run.steps:
                    metrics.flush()
                    self._save()
        finally:
            metrics.close()
        if run.export == "end" or not (self.output / "model").exists():
            self._export()
        return self.output / "model"

    # ------------------------------------------------------------------------------------ a step
    def _train_step(self, step: int) -> StepMetrics:
        run = self.recipe.run
        started = time.perf_counter()
        batch = self._data.train.batch(step - 1, batch_size=run.batch_size)
        batch = dataclasses.replace(batch, progress=(step - 1) / run.steps)
        rate = factor(self.recipe.schedule, step, run.steps)
        try:
            loss, extras = self._gradient(batch, self._generator(step))
        except torch.OutOfMemoryError:
            raise UserError(
                f"a pass over {run.batch_size // run.accumulation} sequences of "
                f"{batch.tokens_BT.shape[1]} tokens does not fit into memory; raise [run] "
                "accumulation (the result stays the same), or lower batch_size or [data] length."
            ) from None
        parameters = [p for _, p in self._parameters()]
        limit = math.inf if run.clip is None else run.clip
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        if not math.isfinite(norm):
            self._stop(step, f"the gradient's norm is {norm}")
        self._optimizer.step(rate)
        if run.ema is not None:
            # Less memory at first, when the weights have little in common with where they lead.
            decay = min(run.ema, step / (10 + step))
            for name, parameter in self._parameters():
                self._ema[name].lerp_(parameter.detach(), 1.0 - decay)
        num_tokens = int((batch.documents_BT >= 0).sum())
        seconds = time.perf_counter() - started
        validation = None
        if step % run.validate_every == 0 or step == run.steps:
            validation = self.validate()
        return StepMetrics(
            step=step,
            loss=loss,
            validation_loss=validation,
            learning_rate=self.recipe.optimizer.learning_rate * rate,
            gradient_norm=norm,
            tokens_per_second=num_tokens / seconds,
            extras=extras,
        )

    def _gradient(
        self, batch: TrainingBatch, rng: torch.Generator
    ) -> tuple[float, dict[str, float]]:
        """Leaves the gradient of the mean loss in the parameters; returns the mean and the means
        of the objective's metrics. However many passes it takes, the gradient is that of one."""
        for _, parameter in self._parameters():
            parameter.grad = None
        total, weight, extras = 0.0, 0.0, Counter[str]()
        self._passes.refresh()
        for part in split(batch, self.recipe.run.accumulation):
            loss = self._passes.loss(part, rng)
            loss.total.backward()  # type: ignore[no-untyped-call]
            self._passes.collect()
            total += loss.total.item()
            weight += loss.weight
            extras.update(loss.metrics)
        step = self.step + 1
        if not weight:
            self._stop(step, "no token of the batch is a target")
        mean = total / weight
        if not math.isfinite(mean):
            self._stop(step, f"the loss is {mean}")
        smoothed = mean if math.isnan(self._smoothed) else self._smoothed
        self._smoothed = _SMOOTHING * smoothed + (1.0 - _SMOOTHING) * mean
        self._lowest = min(self._lowest, self._smoothed)
        if self._smoothed > self._lowest + self.recipe.run.divergence:
            self._stop(
                step,
                f"the loss diverges: {self._smoothed:.4g} over the last steps after "
                f"{self._lowest:.4g}",
            )
        for name, parameter in self._parameters():
            assert parameter.grad is not None, f"the objective leaves {name} without a gradient"
            parameter.grad.div_(weight)
        return mean, {name: value / weight for name, value in extras.items()}

    @torch.no_grad()
    def validate(self) -> float | None:
        """Mean loss on held-out data, always the same data and noise; with the running mean of the
        weights where the recipe asks for one. None if nothing is held out."""
        data = self._data.validation
        if data is None:
            return None
        size = min(self.recipe.run.batch_size // self.recipe.run.accumulation, data.num_sequences)
        count = min(self.recipe.run.validation_batches, data.num_sequences // size)
        rng = self._generator(0)
        total = weight = 0.0
        with self._averaged():
            self._passes.refresh()
            for index in range(count):
                loss = self._passes.loss(data.batch(index, batch_size=size), rng)
                total += loss.total.item()
                weight += loss.weight
        return total / weight if weight else None

    # ------------------------------------------------------------------------------------- state
    def _save(self) -> None:
        checkpoints.save_checkpoint(
            self.output / "checkpoints",
            Checkpoint(
                step=self.step,
                recipe=self.recipe.fields(),
                data=self._data.fingerprint,
                watch={"smoothed": self._smoothed, "lowest": self._lowest},
                weights={name: p.detach() for name, p in self._parameters()},
                optimizer=self._optimizer.state(),
                ema=self._ema,
            ),
        )
        if self.recipe.run.export == "checkpoints":
            self._export()

    def _export(self) -> None:
        with self._averaged():
            self.recipe.model.save(
                self.output / "model", self._trainee, self._data.tokenizer_folder
            )

    def _compare(self, checkpoint: Checkpoint) -> None:
        differs = difference(self.recipe.fields(), checkpoint.recipe)
        if differs is not None:
            raise CheckpointError(
                f"{self.output} holds a run of another recipe: {differs}. Change it back, or give "
                "another output folder."
            )

    @torch.no_grad()
    def _restore(self, checkpoint: Checkpoint) -> None:
        for name, parameter in self._parameters():
            parameter.copy_(checkpoint.weights[name])
        self._optimizer.restore(checkpoint.optimizer)
        self._ema = {name: value.to(self._device) for name, value in checkpoint.ema.items()}
        self._smoothed, self._lowest = checkpoint.watch["smoothed"], checkpoint.watch["lowest"]
        self.step = checkpoint.step

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The running mean in place of the weights, where there is one."""
        own = {name: parameter.data for name, parameter in self._parameters()}
        try:
            for name, parameter in self._parameters():
                parameter.data = self._ema.get(name, parameter.data)
            yield
        finally:
            for name, parameter in self._parameters():
                parameter.data = own[name]

    def _parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return named_parameters(self._trainee)

    def _generator(self, step: int) -> torch.Generator:
        """The randomness of a step (1, 2, ...), or of validation (0)."""
        # Seeds of different runs are far apart: their steps never meet.
        return torch.Generator().manual_seed((self.recipe.run.seed * 2**32 + step) % 2**63)

    def _stop(self, step: int, why: str) -> None:
        found = checkpoints.latest(self.output / "checkpoints")
        last = (
            "there is no checkpoint yet"
            if found is None
            else f"the last good checkpoint is {found}"
        )
        raise TrainingStopped(f"training stopped at step {step}: {why}; {last}. {_ADVICE}")
