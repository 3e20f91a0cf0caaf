"""Policy gradients: draw texts from the model, make those likelier that a reward thinks better of.

A document's prompt is what is given of it, its reference the targets behind. Behind each prompt
some texts are drawn and judged; what is learnt from them is one of

- `self_critical` (SCST, arXiv 1612.00563): each text's log-probability, times how much its reward
  exceeds that of the text written greedily.
- `rloo` (arXiv 2402.14740): the same, with the mean reward of the prompt's other texts as baseline.
- `grpo` (arXiv 2402.03300): token by token, the advantage being the reward less the group's mean,
  by its standard deviation; the ratio of new to old probability clipped; mean over a text's tokens.
- `minimum_risk` (arXiv 1512.02433): the expected loss under the model's distribution, sharpened and
  normalised over the distinct texts that were drawn.

`kl` keeps the model near the recipe's [teacher]: in grpo as a loss of each token (the estimator
r - log r - 1 with r = p_teacher / p), elsewhere taken off the reward. `likelihood` mixes in the
documents' cross-entropy (as arXiv 1609.08144 does); without it, start from a trained model.

Texts are drawn anew every step and serve one step, so that old and new probabilities are one and
clipping has nothing to do, unless `actor` is the teacher: then they are drawn from it, off policy.
There is no critic and no reward model; a text's tokens share its reward.

Shape suffixes: P prompts, S texts of each, R = P * S texts, M tokens of all texts.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch

from anyorder.core import lookup
from anyorder.core.errors import UserError
from anyorder.core.objective import Loss, Objective, TrainableModel, TrainingBatch
from anyorder.core.options import Part, Range, build
from anyorder.core.reward import Answer, Reward
from anyorder.sampling.chain_rule import causal_batch, chain_rule_nats
from anyorder.sampling.continuations import (
    Continuation,
    continuations,
    draw_texts,
    mean_nats,
    pack_documents,
    pack_texts,
    rows_of,
    sum_rows,
)

_TINY = 1e-4
"""Added to a group's standard deviation, so that equal rewards give no advantage at all."""


def _default_reward() -> Reward:
    reward: Reward = build(lookup.find("training/rewards", "tokens", kind="reward"), {})
    return reward


@dataclass(frozen=True, kw_only=True)
class PolicyGradient(Objective):
    """Write texts that a reward thinks well of."""

    draws_texts: ClassVar[bool] = True

    reward: Annotated[Reward, Part("training/rewards"), "what judges a text"] = field(
        default_factory=_default_reward
    )
    estimator: Annotated[
        Literal["self_critical", "rloo", "grpo", "minimum_risk"], "what is made of the rewards"
    ] = "rloo"
    num_samples: Annotated[int, Range(1, 1024), "texts drawn behind each prompt"] = 4
    max_new_tokens: Annotated[
        int | None, Range(1), "longest text; none: as long as its reference"
    ] = None
    prompt_length: Annotated[
        int, Range(1), "tokens that are the prompt of a document that gives none"
    ] = 1
    temperature: Annotated[float, Range(0.01, 100.0), "of the distribution that is trained"] = 1.0
    likelihood: Annotated[
        float, Range(0.0, 1000.0), "weight of a document's own cross-entropy per token"
    ] = 1.0
    kl: Annotated[float, Range(0.0, 1000.0), "weight of the divergence from the teacher"] = 0.0
    clip: Annotated[float, Range(0.0, 10.0), "grpo: how far a ratio may be from 1"] = 0.2
    actor: Annotated[Literal["model", "teacher"], "grpo, minimum_risk: who draws the texts"] = (
        "model"
    )
    sharpness: Annotated[
        float, Range(1e-6, 100.0), "minimum_risk: exponent of the texts' probabilities"
    ] = 5e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples < 2 and self.estimator != "self_critical":
            raise UserError(
                f"{self.estimator} compares texts behind one prompt; num_samples must be at least "
                f"2, got {self.num_samples}."
            )
        if self.actor == "teacher" and self.estimator not in ("grpo", "minimum_risk"):
            raise UserError(
                f"{self.estimator} learns from the model's own texts alone; choose actor = model, "
                "or estimator = grpo or minimum_risk."
            )

    @property
    def needs_teacher(self) -> bool:  # type: ignore[override]
        """As its options say."""
        return self.kl > 0 or self.actor == "teacher"

    def loss(self, model: TrainableModel, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        """A unit is a prompt. The total's value is 1 less the mean reward, and the weighted
        cross-entropy; its gradient is the chosen estimator's."""
        pairs = continuations(batch, prompt_length=self.prompt_length)
        if not pairs:
            return Loss(total=0.0 * model.hidden(causal_batch(batch)).sum(), weight=0.0)
        device = batch.tokens_BT.device
        teacher = model.teacher if self.needs_teacher else None
        assert teacher is not None or not self.needs_teacher, "such a recipe is refused"
        actor = teacher if teacher is not None and self.actor == "teacher" else model
        texts = self._draw(actor, pairs, self.num_samples, self.temperature, rng)
        rewards_PS = self._judge(model, pairs, texts).to(device)
        baseline_PS = None
        if self.estimator == "self_critical":
            greedy = self._draw(model, pairs, 1, 0.0, rng)
            baseline_PS = self._judge(model, pairs, greedy).to(device)
        surrogate = self._surrogate(model, teacher, pairs, texts, rewards_PS, baseline_PS)
        total = surrogate - surrogate.detach() + (1 - rewards_PS.mean(1)).sum()
        nats = 0.0
        if self.likelihood:
            costs = mean_nats(model, pack_documents(pairs, device)).sum()
            total, nats = total + self.likelihood * costs, float(costs.detach())
        return Loss(
            total=total,
            weight=float(len(pairs)),
            metrics={
                "reward": float(rewards_PS.mean(1).sum()),
                "nats": nats,
                "length": sum(map(len, texts)) / self.num_samples,
            },
        )

    def _surrogate(
        self,
        model: TrainableModel,
        teacher: TrainableModel | None,
        pairs: Seq[Continuation],
        texts: Seq[Seq[int]],
        rewards_PS: torch.Tensor,
        baseline_PS: torch.Tensor | None,
    ) -> torch.Tensor:
        """A number whose gradient is what is wanted."""
        repeated = [each.prompt for each in pairs for _ in range(self.num_samples)]
        scored = pack_texts(repeated, texts, rewards_PS.device)
        rows_M, num_texts = rows_of(scored), len(texts)
        logp_M = -chain_rule_nats(model, scored, temperature=self.temperature)
        theirs_M = logp_M.detach()
        if teacher is not None:
            with torch.no_grad():
                theirs_M = -chain_rule_nats(teacher, scored, temperature=self.temperature)
        if self.estimator == "grpo":
            old_M = theirs_M if self.actor == "teacher" else logp_M.detach()
            cost_M = self._grpo(logp_M, old_M, theirs_M, rows_M, rewards_PS)
            lengths_R = sum_rows(torch.ones_like(cost_M), rows_M, num_texts)
            return (sum_rows(cost_M, rows_M, num_texts) / lengths_R).sum() / self.num_samples
        apart_R = sum_rows(logp_M.detach() - theirs_M, rows_M, num_texts)
        judged_PS = rewards_PS - self.kl * apart_R.view_as(rewards_PS)
        logp_PS = sum_rows(logp_M, rows_M, num_texts).view_as(rewards_PS)
        if self.estimator == "minimum_risk":
            again_PS = _again(texts, self.num_samples, rewards_PS.device)
            weights_PS = (self.sharpness * logp_PS).masked_fill(again_PS, -torch.inf).softmax(1)
            return -(weights_PS * judged_PS).sum()
        if baseline_PS is None:
            baseline_PS = (judged_PS.sum(1, keepdim=True) - judged_PS) / (self.num_samples - 1)
        return -((judged_PS - baseline_PS) * logp_PS).mean(1).sum()

    def _grpo(
        self,
        logp_M: torch.Tensor,
        old_M: torch.Tensor,
        theirs_M: torch.Tensor,
        rows_M: torch.Tensor,
        rewards_PS: torch.Tensor,
    ) -> torch.Tensor:
        centred_PS = rewards_PS - rewards_PS.mean(1, keepdim=True)
        advantage_R = (centred_PS / (rewards_PS.std(1, keepdim=True) + _TINY)).flatten()
        advantage_M = advantage_R[rows_M]
        ratio_M = (logp_M - old_M).exp()
        clipped_M = ratio_M.clamp(1 - self.clip, 1 + self.clip)
        log_r_M = theirs_M - logp_M
        apart_M = log_r_M.exp() - log_r_M - 1
        return self.kl * apart_M - torch.minimum(ratio_M * advantage_M, clipped_M * advantage_M)

    def _draw(
        self,
        actor: TrainableModel,
        pairs: Seq[Continuation],
        num_samples: int,
        temperature: float,
        rng: torch.Generator,
    ) -> list[list[int]]:
        return draw_texts(
            actor,
            pairs,
            num_samples=num_samples,
            max_new_tokens=self.max_new_tokens,
            temperature=temperature,
            rng=rng,
        )

    def _judge(
        self, model: TrainableModel, pairs: Seq[Continuation], texts: Seq[Seq[int]]
    ) -> torch.Tensor:
        """Rewards [P, S] of as many texts a prompt as there are."""
        count = len(texts) // len(pairs)
        answers = []
        for number, pair in enumerate(pairs):
            prompt, reference = model.text(pair.prompt), model.text(pair.reference)
            for tokens in texts[number * count : (number + 1) * count]:
                answers.append(
                    Answer(
                        prompt=prompt,
                        text=model.text(tokens),
                        reference=reference,
                        tokens=tuple(tokens),
                        reference_tokens=pair.reference,
                    )
                )
        return torch.tensor(self.reward.judge(answers)).view(len(pairs), count)


def _again(texts: Seq[Seq[int]], num_samples: int, device: torch.device) -> torch.Tensor:
    """bool [P, S]; was the same text drawn before, behind the same prompt?"""
    known = [list(text) for text in texts]
    flags = [text in known[i // num_samples * num_samples : i] for i, text in enumerate(known)]
    return torch.tensor(flags, device=device).view(-1, num_samples)
