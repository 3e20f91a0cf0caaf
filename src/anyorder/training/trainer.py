"""The training loop: plain PyTorch over the network that inference runs.

A run is a function of its recipe: every step's data and noise depend on the recipe's seed and the
step alone, and a checkpoint holds everything else, so that on a CPU a run that was killed and
started again goes through exactly the numbers of one that was not. On a GPU, and with another
number of processes, sums are added in another order. Weights and optimiser are float32, arithmetic
is as the recipe says.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
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
from anyorder.training.passes import Passes, split
from anyorder.training.schedules import factor
from anyorder.training.setup import TrainingData, device_of, make_trainee
from anyorder.training.sources import open_data
from anyorder.training.team import Team
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
        team: Team | None = None,
    ) -> None:
        """`data`: other than what the recipe's [data] names. `watch` is told of every step,
        `progress` of how the data are prepared. `team`: the processes of the run; each has a
        trainer.

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
        self._team = team = team or Team()
        if recipe.run.accumulation % team.num_shares:
            raise UserError(
                f"[run] accumulation is {recipe.run.accumulation}, and the passes of a step cannot "
                f"be dealt evenly to {team.num_shares} processes; make it a multiple (a step's "
                "sequences stay the same)."
            )
        device = device_of(recipe)

        def prepared(resumed: bool) -> TrainingData:
            return open_data(recipe, self.output, resumed=resumed, progress=progress)

        if data is None:
            # What the leader has prepared is there for the others.
            data = team.lead(lambda: prepared(checkpoint is not None)) or prepared(True)
        if checkpoint is not None and checkpoint.data != data.fingerprint:
            raise CheckpointError(
                f"the data have changed since {self.output} was begun; bring the old ones back, or "
                "give another output folder."
            )
        self._data = data
        self._passes = Passes(make_trainee(recipe, data, device), recipe, device, team)
        parameters = dict(self._passes.parameters())
        self._optimizer = Optimizer(
            parameters,
            self._passes.trainee.network,
            recipe.optimizer,
            getattr(torch, recipe.run.dtype),
        )
        self._ema: dict[str, torch.Tensor] = {}
        if recipe.run.ema is not None:
            self._ema = {name: p.detach().clone() for name, p in parameters.items()}
        self._watch = watch
        self._smoothed, self._lowest = math.nan, math.inf
        if checkpoint is not None:
            self._restore(checkpoint)

    @property
    def left_out(self) -> tuple[str, ...]:
        """What of the data could not be used, in a line for each source of which that is true."""
        return self._data.left_out

    def run(self) -> Path:
        """Train what is left to train; returns the folder of the finished model."""
        run = self.recipe.run
        metrics = self._team.lead(self._open_metrics)
        try:
            while self.step < run.steps:
                line = self._train_step(self.step + 1)
                self.step += 1
                if metrics is not None:
                    metrics.write(line)
                    if self._watch is not None:
                        self._watch(line)
                if self.step % run.checkpoint_every == 0 or self.step == run.steps:
                    if metrics is not None:
                        metrics.flush()
                    self._save()
        finally:
            if metrics is not None:
                metrics.close()
        missing = self._team.gather(not (self.output / "model").exists())[0]
        if run.export == "end" or missing:
            self._export()
        return self.output / "model"

    def _open_metrics(self) -> MetricsFile:
        self.output.mkdir(parents=True, exist_ok=True)
        return MetricsFile(self.output / "metrics.jsonl", done=self.step)

    # ------------------------------------------------------------------------------------ a step
    def _train_step(self, step: int) -> StepMetrics:
        run = self.recipe.run
        started = time.perf_counter()
        shares = {"rank": self._team.share, "world_size": self._team.num_shares}
        batch = self._data.train.batch(step - 1, batch_size=run.batch_size, **shares)
        batch = dataclasses.replace(batch, progress=(step - 1) / run.steps)
        rate = factor(self.recipe.schedule, step, run.steps)
        try:
            loss, extras = self._gradient(batch, step)
        except torch.OutOfMemoryError:
            raise UserError(
                f"a pass over {run.batch_size // run.accumulation} sequences of "
                f"{batch.tokens_BT.shape[1]} tokens does not fit into memory; raise [run] "
                "accumulation (a step's sequences stay the same), or lower batch_size or [data] "
                "length."
            ) from None
        norm = self._passes.clip(math.inf if run.clip is None else run.clip)
        if not math.isfinite(norm):
            self._stop(step, f"the gradient's norm is {norm}")
        self._optimizer.step(rate)
        if run.ema is not None:
            # Less memory at first, when the weights have little in common with where they lead.
            decay = min(run.ema, step / (10 + step))
            for name, parameter in self._passes.parameters():
                self._ema[name].lerp_(parameter.detach(), 1.0 - decay)
        num_tokens = int((batch.documents_BT >= 0).sum()) * self._team.num_shares
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

    def _gradient(self, batch: TrainingBatch, step: int) -> tuple[float, dict[str, float]]:
        """Leaves the gradient of the mean loss in the parameters; returns the mean and the means
        of the objective's metrics. However many passes it takes, the gradient is that of one; noise
        depends on the passes, not on the processes that they are dealt to."""
        for _, parameter in self._passes.parameters():
            parameter.grad = None
        total, weight, extras = 0.0, 0.0, Counter[str]()
        count = self.recipe.run.accumulation // self._team.num_shares
        self._passes.refresh()
        for number, part in enumerate(split(batch, count), start=self._team.share * count):
            loss = self._passes.loss(part, self._generator(step, number))
            loss.total.backward()  # type: ignore[no-untyped-call]
            self._passes.collect()
            total += loss.total.item()
            weight += loss.weight
            extras.update(loss.metrics)
        total, weight, extras = self._summed(total, weight, extras)
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
        for name, parameter in self._passes.parameters():
            assert parameter.grad is not None, f"the objective leaves {name} without a gradient"
            parameter.grad.div_(weight)
        return mean, {name: value / weight for name, value in extras.items()}

    def _summed(
        self, total: float, weight: float, extras: Mapping[str, float]
    ) -> tuple[float, float, Counter[str]]:
        """What the processes' passes cost together."""
        shares = self._team.gather_shares([total, weight, dict(extras)])
        extras = Counter()
        for _, _, share in shares:
            extras.update(share)
        return sum(share[0] for share in shares), sum(share[1] for share in shares), extras

    @torch.no_grad()
    def validate(self) -> float | None:
        """Mean loss on held-out data, always the same data and noise; with the running mean of the
        weights where the recipe asks for one. None if nothing is held out."""
        data = self._data.validation
        if data is None:
            return None
        size = min(self.recipe.run.batch_size // self.recipe.run.accumulation, data.num_sequences)
        count = min(self.recipe.run.validation_batches, data.num_sequences // size)
        total = weight = 0.0
        with self._averaged():
            self._passes.refresh()
            # All processes run as many passes; what is beyond the last batch does not count.
            rounds = -(-count // self._team.num_shares)
            for index in range(
                self._team.share, rounds * self._team.num_shares, self._team.num_shares
            ):
                batch = data.batch(index % count, batch_size=size)
                loss = self._passes.loss(batch, self._generator(0, index))
                if index < count:
                    total += loss.total.item()
                    weight += loss.weight
        total, weight, _ = self._summed(total, weight, {})
        return total / weight if weight else None

    # ------------------------------------------------------------------------------------- state
    def _save(self) -> None:
        checkpoint = Checkpoint(
            step=self.step,
            recipe=self.recipe.fields(),
            data=self._data.fingerprint,
            watch={"smoothed": self._smoothed, "lowest": self._lowest},
            weights=self._passes.whole({n: p.detach() for n, p in self._passes.parameters()}),
            optimizer=self._passes.whole(self._optimizer.state()),
            ema=self._passes.whole(self._ema),
        )
        folder = self.output / "checkpoints"
        self._team.lead(lambda: checkpoints.save_checkpoint(folder, checkpoint))
        if self.recipe.run.export == "checkpoints":
            self._export()

    def _export(self) -> None:
        with self._averaged():
            trainee = self._passes.finished()
            tokenizer_folder = self._data.tokenizer_folder
            save = self.recipe.model.save
            self._team.lead(lambda: save(self.output / "model", trainee, tokenizer_folder))

    def _compare(self, checkpoint: Checkpoint) -> None:
        differs = difference(self.recipe.fields(), checkpoint.recipe)
        if differs is not None:
            raise CheckpointError(
                f"{self.output} holds a run of another recipe: {differs}. Change it back, or give "
                "another output folder."
            )

    @torch.no_grad()
    def _restore(self, checkpoint: Checkpoint) -> None:
        weights = self._passes.parts(checkpoint.weights)
        for name, parameter in self._passes.parameters():
            parameter.copy_(weights[name])
        self._optimizer.restore(self._passes.parts(checkpoint.optimizer))
        self._ema = self._passes.parts(checkpoint.ema)
        self._smoothed, self._lowest = checkpoint.watch["smoothed"], checkpoint.watch["lowest"]
        self.step = checkpoint.step

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The running mean in place of the weights, where there is one."""
        parameters = dict(self._passes.parameters())
        with torch.no_grad():
            own = {name: parameters[name].detach().clone() for name in self._ema}
            for name, mean in self._ema.items():
                parameters[name].copy_(mean)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, values in own.items():
                    parameters[name].copy_(values)

    def _generator(self, step: int, part: int) -> torch.Generator:
        """The randomness of a part of a step (1, 2, ...), or of a batch of validation (0)."""
        key = f"{self.recipe.run.seed} {step} {part}".encode()
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) % 2**63
        return torch.Generator().manual_seed(seed)

    def _stop(self, step: int, why: str) -> None:
        found = checkpoints.latest(self.output / "checkpoints")
        last = (
            "there is no checkpoint yet"
            if found is None
            else f"the last good checkpoint is {found}"
        )
        raise TrainingStopped(f"training stopped at step {step}: {why}; {last}. {_ADVICE}")
