"""The sections of a training recipe besides [model] and [objective]: one frozen dataclass each.

A field is an option with its bounds and its description (`core.options`). Nothing here imports
torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from anyorder.core.errors import InvalidRequest
from anyorder.core.options import Range, validate
from anyorder.training.readers import Source


@dataclass(frozen=True, kw_only=True)
class TeacherRecipe:
    """[teacher]: a frozen model that the objective asks, or that a drafter drafts for."""

    init: Annotated[str, "name or folder of the model"]
    states: Annotated[
        str | None,
        "folder for its hidden states, so that it runs each row once, in this run and in others; "
        "none: it runs every row anew",
    ] = None

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, kw_only=True)
class AdapterRecipe:
    """[adapter]: train low-rank additions (LoRA) to the matrices of a model to fine-tune."""

    rank: Annotated[int, Range(1), "rows of the smaller matrices"] = 8
    alpha: Annotated[float, Range(1e-6), "the additions are multiplied by alpha / rank"] = 16.0
    targets: Annotated[Literal["attention", "mlp", "all"], "which matrices of the layers"] = "all"
    dora: Annotated[bool, "learn the lengths of the matrices' rows too (DoRA)"] = False
    export: Annotated[
        Literal["merged", "adapter"], "a whole model, or a folder of additions for PEFT"
    ] = "merged"

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """[data]: which texts, and how they become sequences of tokens."""

    sources: Annotated[
        tuple[Source, ...], "files, folders or patterns, from the recipe's folder; or tables"
    ]
    length: Annotated[int, Range(2), "tokens of a training sequence"]
    source_length: Annotated[
        int | None, Range(1), "pairs: tokens of a sequence's sources; none: as length"
    ] = None
    validation: Annotated[float, Range(0.0, 0.5), "share of the documents held out"] = 0.02
    test: Annotated[
        float, Range(0.0, 0.5), "share held out besides, which training never looks at"
    ] = 0.0
    tokenizer: Annotated[str | None, "folder or model whose tokenizer to use"] = None
    vocabulary: Annotated[
        int | None, Range(260, 1_000_000), "train a byte-level BPE tokenizer of this size instead"
    ] = None
    add_tokens: Annotated[
        bool, "add the control tokens (mask, tags) that the objective needs to the tokenizer"
    ] = False

    def __post_init__(self) -> None:
        validate(self)
        if self.add_tokens and self.vocabulary is not None:
            raise InvalidRequest(
                "[data] has add_tokens and vocabulary; a tokenizer that is trained has what the "
                "objective needs: leave add_tokens out."
            )
        if self.tokenizer is not None and self.vocabulary is not None:
            raise InvalidRequest(
                "[data] has tokenizer and vocabulary; name a tokenizer to use or the size of one "
                "to train, not both."
            )


@dataclass(frozen=True, kw_only=True)
class OptimizerRecipe:
    """[optimizer]: how gradients become updates."""

    name: Annotated[Literal["adamw", "muon"], "muon: for hidden matrices; AdamW for the rest"] = (
        "adamw"
    )
    learning_rate: Annotated[float, Range(1e-12, 10.0), "the schedule's highest"]
    beta1: Annotated[float, Range(0.0, 0.99999), "memory of AdamW's mean gradient"] = 0.9
    beta2: Annotated[float, Range(0.0, 0.99999), "memory of AdamW's mean squared gradient"] = 0.95
    epsilon: Annotated[float, Range(1e-16, 1.0), "added to AdamW's denominator"] = 1e-8
    weight_decay: Annotated[float, Range(0.0, 10.0), "of matrices; never of norms and biases"] = 0.1
    momentum: Annotated[float, Range(0.0, 0.99999), "memory of Muon's gradient"] = 0.95

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, kw_only=True)
class ScheduleRecipe:
    """[schedule]: the learning rate over the steps."""

    name: Annotated[Literal["constant", "cosine", "wsd", "noam"], "shape after the warm-up"] = (
        "cosine"
    )
    warmup: Annotated[int, Range(0), "steps of linear rise from 0"] = 0
    final: Annotated[float, Range(0.0, 1.0), "cosine, wsd: where it ends, of the highest"] = 0.1
    decay: Annotated[float, Range(0.0, 1.0), "wsd: share of the steps in which it falls"] = 0.2

    def __post_init__(self) -> None:
        validate(self)
        if self.name == "noam" and not self.warmup:
            raise InvalidRequest("[schedule] noam needs warmup of at least 1 step, got 0.")


@dataclass(frozen=True, kw_only=True)
class RunRecipe:
    """[run]: how long, how much at a time, and what is kept."""

    steps: Annotated[int, Range(1), "optimiser steps"]
    batch_size: Annotated[int, Range(1), "sequences of a step"]
    accumulation: Annotated[int, Range(1), "passes a step's sequences are spread over"] = 1
    clip: Annotated[float | None, Range(1e-6), "largest norm of the gradient"] = 1.0
    dropout: Annotated[
        float, Range(0.0, 0.9), "share of embeddings and layers' outputs zeroed in training"
    ] = 0.0
    dtype: Annotated[
        Literal["float32", "bfloat16"], "of the passes; weights are trained in float32"
    ] = "float32"
    device: Annotated[Literal["auto", "cpu", "cuda"], "auto: the first GPU, or else the CPU"] = (
        "auto"
    )
    seed: Annotated[int, Range(0, 2**62), "of weights, order of the data, and noise"] = 0
    checkpoint_every: Annotated[int, Range(1), "steps between checkpoints"] = 500
    validate_every: Annotated[int, Range(1), "steps between validations"] = 250
    validation_batches: Annotated[int, Range(1), "most batches of a validation"] = 8
    ema: Annotated[
        float | None, Range(0.0, 0.999999), "memory of a running mean of the weights, then used"
    ] = None
    divergence: Annotated[
        float, Range(0.0), "stop if the smoothed loss is so far above its lowest"
    ] = 2.0
    checkpoint_layers: Annotated[
        bool, "keep layers' inputs alone and run each layer again for gradients: less memory"
    ] = False
    compile: Annotated[bool, "compile the layers with torch.compile"] = False
    tensor_parallel: Annotated[
        int, Range(1), "of the run's processes, how many share every matrix"
    ] = 1
    export: Annotated[Literal["end", "checkpoints"], "when a model folder is written"] = "end"
    output: Annotated[str | None, "folder; none: runs/ and the recipe's name"] = None

    def __post_init__(self) -> None:
        validate(self)
        if self.dropout and (self.compile or self.tensor_parallel > 1):
            raise InvalidRequest(
                "[run] dropout goes neither with compile nor with tensor_parallel; leave out one "
                "of them."
            )
        if self.batch_size % self.accumulation:
            raise InvalidRequest(
                f"[run] batch_size must be a multiple of accumulation, got {self.batch_size} and "
                f"{self.accumulation}."
            )
