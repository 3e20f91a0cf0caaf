"""Exposure bias: does a model get worse on what it wrote itself, and do its errors add up?

A model that was trained on texts reads its own text when it writes. An oracle, a better model of
the same vocabulary, says at every step what should have followed, behind the text's own tokens
("gold") and behind what the model wrote after the same prompt ("own"). The error of a step is the
divergence of the model's distribution from the oracle's, KL(oracle || model).

- Accumulated error (Arora et al., arXiv 2204.01171): the sum of the errors of the first l steps on
  own prefixes, in units of the mean error on gold prefixes. Without exposure bias it is l; the
  excess over l in per cent (%ExAccErr) is 0.
- Ratio (He et al., arXiv 1905.10617, EB-C): the error at step l on own prefixes, by that on gold.

The oracle's own errors are in all of this, and the gold texts are taken for draws from it. Texts
that end before the last step are left out, on both sides. With greedy or sharpened texts the
numbers tell of the way of decoding, not of the model alone.

Shape suffixes: R texts, T tokens, L steps, M rows, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch

from anyorder.core.batch import dense_batch
from anyorder.core.errors import UserError
from anyorder.core.objective import TrainableModel, TrainingBatch

_CHUNK_LOGITS = 1 << 22
"""Most logits of a model that exist at once."""
_TEXTS_AT_A_TIME = 64


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """Means over texts, for steps 1, 2, ... after the prompt."""

    gold_loss: tuple[float, ...]
    """Cross-entropy of the oracle's distribution under the model's, in nats, on gold prefixes."""
    own_loss: tuple[float, ...]
    """The same on the model's own prefixes."""
    gold_error: tuple[float, ...]
    """KL(oracle || model), in nats, on gold prefixes."""
    own_error: tuple[float, ...]
    """The same on the model's own prefixes."""
    excess_standard_error: tuple[float, ...]
    """Of `excess`, in per cent, from the choice and the drawing of texts."""
    prompt_length: int
    num_texts: int

    @property
    def accumulated(self) -> tuple[float, ...]:
        """Accumulated error after each step."""
        gold = itertools.accumulate(self.gold_error)
        sums = zip(itertools.accumulate(self.own_error), gold, strict=True)
        return tuple(step * own / total for step, (own, total) in enumerate(sums, start=1))

    @property
    def excess(self) -> tuple[float, ...]:
        """%ExAccErr after each step."""
        return tuple(
            100 * (error / step - 1) for step, error in enumerate(self.accumulated, start=1)
        )

    @property
    def ratio(self) -> tuple[float, ...]:
        """EB-C at each step."""
        return tuple(own / gold for own, gold in zip(self.own_error, self.gold_error, strict=True))


def measure_exposure(
    model: TrainableModel,
    oracle: TrainableModel,
    batches: Seq[TrainingBatch],
    *,
    prompt_length: int = 16,
    length: int = 64,
    num_samples: int = 1,
    temperature: float = 1.0,
    seed: int = 0,
) -> Exposure:
    """Over all documents of the batches that have `prompt_length` + `length` tokens or more;
    `num_samples` texts are drawn behind each prompt."""
    ours, theirs = model.abilities.vocabulary_size, oracle.abilities.vocabulary_size
    if ours != theirs:
        raise UserError(
            f"{model.abilities.name} has {ours} tokens and the oracle {oracle.abilities.name} has "
            f"{theirs}; exposure needs an oracle with the model's own tokenizer."
        )
    rng = torch.Generator().manual_seed(seed)
    gold, own = [], []
    for batch in batches:
        golden = [text[: prompt_length + length] for text in _documents(batch)]
        golden = [text for text in golden if len(text) == prompt_length + length]
        for start in range(0, len(golden), _TEXTS_AT_A_TIME):
            some = golden[start : start + _TEXTS_AT_A_TIME]
            prompts = [text[:prompt_length] for text in some for _ in range(num_samples)]
            drawn = model.generate(prompts, max_new_tokens=length, temperature=temperature, rng=rng)
            both = [prompt + text for prompt, text in zip(prompts, drawn, strict=True)]
            whole = [place for place, text in enumerate(drawn) if len(text) == length]
            if not whole:
                continue
            device = batch.tokens_BT.device
            chosen = [some[place // num_samples] for place in whole]
            kept = [both[place] for place in whole]
            steps = slice(prompt_length - 1, prompt_length + length - 1)
            gold.append(_errors(model, oracle, torch.tensor(chosen, device=device), steps))
            own.append(_errors(model, oracle, torch.tensor(kept, device=device), steps))
    if sum(map(len, own)) < 2:
        raise UserError(
            f"fewer than two documents have {prompt_length} tokens of a prompt and {length} more, "
            "or the model ended its texts before; give longer documents, or ask for fewer steps."
        )
    gold_RL2, own_RL2 = torch.cat(gold), torch.cat(own)
    gold_L2, own_L2 = gold_RL2.mean(0), own_RL2.mean(0)
    return Exposure(
        gold_loss=tuple(gold_L2[:, 0].tolist()),
        own_loss=tuple(own_L2[:, 0].tolist()),
        gold_error=tuple(gold_L2[:, 1].tolist()),
        own_error=tuple(own_L2[:, 1].tolist()),
        excess_standard_error=_standard_error(gold_RL2[..., 1], own_RL2[..., 1]),
        prompt_length=prompt_length,
        num_texts=len(own_RL2),
    )


def _documents(batch: TrainingBatch) -> list[list[int]]:
    found = []
    for tokens, documents in zip(
        batch.tokens_BT.tolist(), batch.documents_BT.tolist(), strict=True
    ):
        pairs = zip(documents, tokens, strict=True)
        for number, part in itertools.groupby(pairs, key=lambda pair: pair[0]):
            if number >= 0:
                found.append([token for _, token in part])
    return found


@torch.no_grad()
def _errors(
    model: TrainableModel, oracle: TrainableModel, texts_RT: torch.Tensor, steps: slice
) -> torch.Tensor:
    """float64 [R, L, 2]: cross-entropy and divergence of what is predicted at each step."""
    shape = (*texts_RT.shape, -1)
    ours, theirs = (
        each.hidden(dense_batch(texts_RT)).view(shape)[:, steps].flatten(0, 1)
        for each in (model, oracle)
    )
    num_rows = max(1, _CHUNK_LOGITS // model.abilities.vocabulary_size)
    parts = []
    chunks = zip(torch.split(ours, num_rows), torch.split(theirs, num_rows), strict=True)
    for ours_MW, theirs_MW in chunks:
        logp_MV = model.logits(ours_MW).double().log_softmax(-1)
        logo_MV = oracle.logits(theirs_MW).double().log_softmax(-1)
        loss_M = -(logo_MV.exp() * logp_MV).sum(-1)
        entropy_M = -(logo_MV.exp() * logo_MV).sum(-1)
        parts.append(torch.stack((loss_M, loss_M - entropy_M), dim=1))
    return torch.cat(parts).view(len(texts_RT), -1, 2)


def _standard_error(gold_RL: torch.Tensor, own_RL: torch.Tensor) -> tuple[float, ...]:
    """Of a ratio of two means over the same texts (delta method), in per cent."""
    gold_RL, own_RL = gold_RL.cumsum(1), own_RL.cumsum(1)
    ratio_L = own_RL.mean(0) / gold_RL.mean(0)
    spread_L = (own_RL - ratio_L * gold_RL).std(0) / math.sqrt(len(own_RL))
    return tuple((100 * spread_L / gold_RL.mean(0)).tolist())
