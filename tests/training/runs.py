"""Small runs for tests of the trainer: a recipe, a tokenizer of 258 tokens, sequences in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from anyorder.core.objective import TrainingBatch
from anyorder.training.config import Recipe, build_recipe
from anyorder.training.distributed import team_of
from anyorder.training.setup import TrainingData
from anyorder.training.trainer import Trainer

LENGTH = 12
SECTIONS: dict[str, dict[str, Any]] = {
    "model": {"width": 16, "layers": 2, "heads": 2, "kv_heads": 1, "mlp_width": 24, "context": 32},
    "data": {"sources": ["text.txt"], "length": LENGTH, "vocabulary": 300},
    "objective": {"name": "next_token"},
    "optimizer": {"learning_rate": 0.01},
    "schedule": {"warmup": 2},
    "run": {"steps": 8, "batch_size": 4, "checkpoint_every": 3, "validate_every": 4, "seed": 5},
}


def sections(changes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """SECTIONS with some fields changed, and further sections."""
    return {
        name: {**SECTIONS.get(name, {}), **changes.get(name, {})}
        for name in {**SECTIONS, **changes}
    }


def small_recipe(output: Path, **changes: Mapping[str, Any]) -> Recipe:
    """A recipe of eight steps whose results go to `output`."""
    run = {**changes.get("run", {}), "output": str(output)}
    return build_recipe(sections({**changes, "run": run}))


def byte_tokenizer(folder: Path) -> Path:
    """A tokenizer of bytes, an end token (256) and a mask token (257)."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    ends = [AddedToken(text, special=True) for text in ("<|endoftext|>", "<|mask|>")]
    backend.add_special_tokens(ends)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|endoftext|>", "mask_token": "<|mask|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@dataclass(frozen=True, kw_only=True, eq=False)
class MemorySequences:
    """Random sequences; every step draws its own rows, with targets of unequal number."""

    tokens_ST: torch.Tensor

    @property
    def num_sequences(self) -> int:
        return len(self.tokens_ST)

    @property
    def length(self) -> int:
        return self.tokens_ST.shape[1]

    def batch(
        self, step: int, *, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> TrainingBatch:
        rng = torch.Generator().manual_seed(step)
        rows = torch.randint(self.num_sequences, (batch_size,), generator=rng)
        tokens_BT = self.tokens_ST[rows]
        first_B1 = torch.randint(1, self.length - 1, (batch_size, 1), generator=rng)
        targets_BT = torch.arange(self.length).expand_as(tokens_BT) >= first_B1
        share = slice(batch_size // world_size * rank, batch_size // world_size * (rank + 1))
        return TrainingBatch(
            tokens_BT=tokens_BT[share],
            documents_BT=torch.zeros_like(tokens_BT[share]),
            targets_BT=targets_BT[share],
        )


def memory_data(folder: Path, *, held_out: bool = True) -> TrainingData:
    """40 sequences to learn, 8 held out."""
    rng = torch.Generator().manual_seed(0)
    tokens_ST = torch.randint(60, 100, (48, LENGTH), generator=rng)
    return TrainingData(
        train=MemorySequences(tokens_ST=tokens_ST[:40]),
        validation=MemorySequences(tokens_ST=tokens_ST[40:]) if held_out else None,
        tokenizer_folder=byte_tokenizer(folder / "tokenizer"),
    )


def train_cases(
    rank: int, size: int, meeting: Path, folder: Path, cases: Mapping[str, Mapping[str, Any]]
) -> str:
    """Recipes that differ from the small one as told, one after the other, each in a team of its
    own."""
    data = memory_data(folder / f"process{rank}")
    for name, changes in cases.items():
        recipe = small_recipe(folder / "two" / name, **changes)
        with team_of(recipe, rank=rank, size=size, meeting=meeting.with_name(name)) as team:
            Trainer(recipe, data=data, team=team).run()
    return "done"
