"""Adversarial training: a discriminator learns to tell written texts from real ones, and the model
to deceive it, beside next-token prediction.

After SeqGAN (Yu et al., arXiv 1609.05473). The discriminator is SeqGAN's kind, convolutions of
several widths and the maximum over the text, trained in the same step as the model on what the
model has just written. The model learns by policy gradient (the reward is how real a text looks,
a prompt's other texts are the baseline; SeqGAN's roll-outs from every prefix are not here), or
through a straight-through Gumbel-softmax (arXiv 1611.00712): forward the drawn tokens, backward
the relaxed distributions that they were drawn from. The latter does not follow a token's effect on
the tokens after it.

What the literature found: language GANs lose to plain maximum likelihood at a well-chosen
temperature (Caccia et al., "Language GANs Falling Short", arXiv 1811.02549). The quality they gain
is paid for with variety. Compare over a sweep of temperatures, and expect nothing of it; a small
`weight` does little harm.

The two players' losses say nothing about progress. The total's value is therefore the texts'
cross-entropy alone; what the players have is in the metrics.

Shape suffixes: P prompts, S texts of each, R = P * S texts, T tokens, M tokens of all texts, V
vocabulary, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from anyorder.core.method import Abilities
from anyorder.core.objective import Loss, Objective, TrainableModel, TrainingBatch
from anyorder.core.options import Range
from anyorder.sampling.chain_rule import causal_batch, chain_rule_nats, predicted
from anyorder.sampling.continuations import (
    continuations,
    draw_texts,
    mean_nats,
    pack_documents,
    pack_texts,
    rows_of,
    sum_rows,
)
from anyorder.sampling.row_costs import row_costs

_WIDTHS = (1, 2, 3, 4)
"""Of the convolutions: how many neighbouring tokens each looks at."""


@dataclass(frozen=True, kw_only=True)
class Adversarial(Objective):
    """Predict every token, and write texts that a discriminator takes for real ones."""

    draws_texts: ClassVar[bool] = True

    estimator: Annotated[
        Literal["policy_gradient", "straight_through"], "how the model learns to deceive"
    ] = "policy_gradient"
    weight: Annotated[float, Range(0.0, 1000.0), "of deceiving, beside cross-entropy"] = 0.1
    num_samples: Annotated[int, Range(2, 1024), "texts drawn behind each prompt"] = 2
    max_new_tokens: Annotated[
        int | None, Range(1), "longest text; none: as long as its reference"
    ] = None
    prompt_length: Annotated[
        int, Range(1), "tokens that are the prompt of a document that gives none"
    ] = 1
    channels: Annotated[int, Range(1), "of the discriminator's embeddings and convolutions"] = 64
    relaxation: Annotated[
        float, Range(0.01, 100.0), "straight_through: temperature of the relaxed distributions"
    ] = 1.0

    def companion(self, abilities: Abilities) -> nn.Module:
        """The discriminator."""
        return _Discriminator(abilities.vocabulary_size, self.channels)

    def loss(self, model: TrainableModel, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        """A unit is a prompt. The total's value is the mean cross-entropy of the document's
        tokens; its gradient is that of all three losses."""
        pairs = continuations(batch, prompt_length=self.prompt_length)
        if not pairs:
            return Loss(total=0.0 * model.hidden(causal_batch(batch)).sum(), weight=0.0)
        judge = model.companion
        assert isinstance(judge, _Discriminator), "companion() made one"
        device, count = batch.tokens_BT.device, self.num_samples
        prompts = [each.prompt for each in pairs]
        real = pack_documents(pairs, device)
        nats = mean_nats(model, real).sum()
        texts = draw_texts(
            model,
            pairs,
            num_samples=count,
            max_new_tokens=self.max_new_tokens,
            temperature=1.0,
            rng=rng,
        )
        written = pack_texts([prompt for prompt in prompts for _ in range(count)], texts, device)
        real_P, written_R = judge(*_embedded(judge, real)), judge(*_embedded(judge, written))
        # -log sigmoid(-x) is the cost of taking a written text for real.
        told = F.softplus(-real_P).sum() + F.softplus(written_R).sum() / count
        if self.estimator == "policy_gradient":
            deceived = self._policy_gradient(model, written, written_R.detach())
        else:
            deceived = self._straight_through(model, judge, written, rng)
        players = told + self.weight * deceived
        right = (real_P > 0).float().mean() + (written_R <= 0).float().mean()
        return Loss(
            total=nats + players - players.detach(),
            weight=float(len(pairs)),
            metrics={
                "nats": float(nats.detach()),
                "discriminator": float(told.detach()),
                "told_apart": float(right / 2) * len(pairs),
            },
        )

    def _policy_gradient(
        self, model: TrainableModel, written: TrainingBatch, logits_R: torch.Tensor
    ) -> torch.Tensor:
        """A number whose gradient makes texts likelier that look more real than their group's
        others."""
        reward_PS = logits_R.sigmoid().view(-1, self.num_samples)
        baseline_PS = (reward_PS.sum(1, keepdim=True) - reward_PS) / (self.num_samples - 1)
        logp_M = -chain_rule_nats(model, written)
        logp_PS = sum_rows(logp_M, rows_of(written), len(logits_R)).view_as(reward_PS)
        return -((reward_PS - baseline_PS).to(logp_PS.dtype) * logp_PS).mean(1).sum()

    def _straight_through(
        self,
        model: TrainableModel,
        judge: _Discriminator,
        written: TrainingBatch,
        rng: torch.Generator,
    ) -> torch.Tensor:
        """The cost of not being taken for real, through the tokens' relaxed distributions."""
        tokens_BT, predicted_BT = written.tokens_BT, predicted(written)
        table_VC = judge.embedding.weight.detach()

        def relaxed(
            logits_MV: torch.Tensor, tokens_M: torch.Tensor, waits_MV: torch.Tensor
        ) -> torch.Tensor:
            scores_MV = _conditional_scores(logits_MV, tokens_M, waits_MV)
            soft_MV = (scores_MV / self.relaxation).softmax(-1)
            hard_MV = F.one_hot(tokens_M, soft_MV.shape[1])
            return (hard_MV + soft_MV - soft_MV.detach()).to(table_VC.dtype) @ table_VC

        hidden_NW = model.hidden(causal_batch(written))
        tokens_M = tokens_BT[predicted_BT]
        shape = (len(tokens_M), model.abilities.vocabulary_size)
        waits_MV = -torch.rand(shape, generator=rng).clamp(min=1e-30).log().to(hidden_NW.device)
        drawn_MC = row_costs(
            model,
            hidden_NW[predicted_BT.roll(-1, dims=1).flatten()],
            relaxed,
            tokens_M,
            waits_MV,
        )
        embedded_BTC, there_BT = _embedded(judge, written)
        embedded_BTC = embedded_BTC.detach().masked_scatter(predicted_BT[:, :, None], drawn_MC)
        frozen = {name: weight.detach() for name, weight in judge.named_parameters()}
        logits_R = torch.func.functional_call(judge, frozen, (embedded_BTC, there_BT))
        return F.softplus(-logits_R).sum() / self.num_samples


def _conditional_scores(
    logits_MV: torch.Tensor, tokens_M: torch.Tensor, waits_MV: torch.Tensor
) -> torch.Tensor:
    """Logits with Gumbel noise, given that each row's largest is that of its token.

    In the picture of a race every token arrives after an exponential wait (`waits_MV`, of rate 1)
    over its probability; the first one wins. The winner's time has rate 1 whoever it is, and the
    others' waits go on from there, for exponential waits remember nothing.
    """
    logp_MV = logits_MV.log_softmax(-1)
    first_M1 = waits_MV.gather(1, tokens_M[:, None])
    others_MV = first_M1 + waits_MV / logp_MV.exp().clamp(min=1e-30)
    times_MV = others_MV.scatter(1, tokens_M[:, None], first_M1)
    return -times_MV.log()


def _embedded(judge: _Discriminator, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor]:
    return judge.embedding(batch.tokens_BT), batch.documents_BT >= 0


class _Discriminator(nn.Module):
    """How real a text looks, as a logit; convolutions over its tokens' embeddings."""

    def __init__(self, vocabulary_size: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, channels)
        self.convolutions = nn.ModuleList(nn.Conv1d(channels, channels, width) for width in _WIDTHS)
        self.out = nn.Linear(len(_WIDTHS) * channels, 1)

    def forward(self, embedded_RTC: torch.Tensor, there_RT: torch.Tensor) -> torch.Tensor:
        """Logits [R]; `there_RT` is false for padding, which lies behind the text."""
        x_RCT = (embedded_RTC * there_RT[:, :, None]).transpose(1, 2)
        highest = []
        for convolution, width in zip(self.convolutions, _WIDTHS, strict=True):
            y_RCT = F.relu(convolution(F.pad(x_RCT, (0, width - 1))))
            highest.append((y_RCT * there_RT[:, None]).amax(2))
        logits_R1: torch.Tensor = self.out(torch.cat(highest, dim=1))
        return logits_R1[:, 0]
