"""Block diffusion: block after block, each by masked diffusion, given the clean blocks before it.

BD3-LM (Arriola et al., arXiv 2503.09573). One pass over [noisy ; clean] trains all blocks at once:
a noisy token sees its own noisy block and the clean blocks before it, a clean token the clean
blocks up to its own. Blocks are counted from the start of each document. Blocks of one token
make it the chain rule, and one block as large as the text makes it masked diffusion.

Clipped noise (`min_noise`, `max_noise`) leaves out shares of masks that teach little for how much
their loss scatters. What is left is no bound; evaluate without clipping. The paper's search for the
best interval is not here, nor does a block whose drawn masks miss the interval get new ones. With
`schedule = "counts"` less scatters without any clipping, and most of all in small blocks.

With `clean = "causal"` clean tokens see those before them alone, as in a text that is written token
by token, and with `next_token` the same pass learns to do so (Set Block Decoding, arXiv 2509.04185;
TiDAR, arXiv 2511.08923): the model writes either way on one cache, and checks its own blocks.

Shape suffixes: B sequences, T tokens each, D = 2 T, M rows with a target, W width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch

from anyorder.core.batch import dense_batch
from anyorder.core.errors import UserError
from anyorder.core.method import Abilities, AttentionKind
from anyorder.core.objective import Loss, Objective, TrainableModel, TrainingBatch
from anyorder.core.options import Range
from anyorder.core.packing import document_positions, same_document
from anyorder.sampling.chain_rule import predicted
from anyorder.sampling.noise import MaskSchedule, draw_masks
from anyorder.sampling.row_costs import row_nats


@dataclass(frozen=True, kw_only=True)
class BlockDiffusion(Objective):
    """Predict the masked tokens of a block from its others and the blocks before it."""

    attention: ClassVar[AttentionKind] = "bidirectional"
    needs_mask_token: ClassVar[bool] = True

    block_size: Annotated[int, Range(1), "tokens denoised together"] = 16
    schedule: Annotated[MaskSchedule, "how often each share of masks is drawn"] = "linear"
    min_noise: Annotated[float, Range(0.0, 1.0), "smallest share of masks drawn"] = 1e-3
    max_noise: Annotated[float, Range(0.0, 1.0), "largest share of masks drawn"] = 1.0
    clean: Annotated[
        Literal["bidirectional", "causal"], "how tokens of a clean block see each other"
    ] = "bidirectional"
    next_token: Annotated[
        float, Range(0.0, 100.0), "clean = causal: weight of predicting tokens from those before"
    ] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.next_token and self.clean != "causal":
            raise UserError(
                f"next_token = {self.next_token:g} needs tokens that do not see those behind them; "
                'give clean = "causal", or leave next_token out.'
            )
        if self.min_noise > self.max_noise or self.max_noise == 0:
            raise UserError(
                f"noise from {self.min_noise:g} to {self.max_noise:g} masks nothing; choose "
                "max_noise above 0 and min_noise not above it."
            )

    def trained(self, abilities: Abilities) -> Abilities:
        """It denoises blocks of this size, and may write token by token."""
        found = super().trained(abilities)
        if self.next_token:
            found = replace(found, attention=frozenset({"causal", "bidirectional"}))
        return replace(found, block_size=self.block_size, clean_text=self.clean)

    def loss(self, model: TrainableModel, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        """Over weight, an estimate of the bound in nats per target token, masked or not, and with
        `next_token` times the nats of predicting it from those before it. The metric `nats` is the
        bound alone, and `next_nats` the others."""
        mask_token = model.abilities.mask_token
        assert mask_token is not None, "check() refuses models without a mask token"
        tokens_BT = batch.tokens_BT
        positions_BT = document_positions(batch.documents_BT)
        masked_BT, weights_BT = draw_masks(
            positions_BT % self.block_size == 0,
            batch.targets_BT,
            schedule=self.schedule,
            lowest=self.min_noise,
            highest=self.max_noise,
            rng=rng,
        )
        noisy_BT = tokens_BT.masked_fill(masked_BT, mask_token)
        packed = dense_batch(
            torch.cat((noisy_BT, tokens_BT), dim=1),
            _visible(
                same_document(batch.documents_BT),
                positions_BT // self.block_size,
                positions_BT if self.clean == "causal" else positions_BT // self.block_size,
            ),
            torch.cat((positions_BT, positions_BT), dim=1),
        )
        hidden_BDW = model.hidden(packed).view(len(tokens_BT), 2 * tokens_BT.shape[1], -1)
        hidden_MW = hidden_BDW[:, : tokens_BT.shape[1]][masked_BT]
        nats_M = row_nats(model, hidden_MW, tokens_BT[masked_BT], banned=mask_token)
        total = (nats_M * weights_BT[masked_BT]).sum()
        metrics = {"nats": float(total.detach())}
        if self.next_token:
            predicted_BT = predicted(batch)
            # The clean row before a target, as a target is never a row's first token.
            before_MW = hidden_BDW[:, tokens_BT.shape[1] : -1][predicted_BT[:, 1:]]
            text = row_nats(model, before_MW, tokens_BT[predicted_BT]).sum()
            total = total + self.next_token * text
            metrics["next_nats"] = float(text.detach())
        return Loss(total=total, weight=float(batch.targets_BT.sum()), metrics=metrics)


def _visible(
    together_BTT: torch.Tensor, blocks_BT: torch.Tensor, clean_BT: torch.Tensor
) -> torch.Tensor:
    """[B, D, D]: who sees whom in [noisy ; clean]; clean tokens see those of no higher number in
    `clean_BT`."""
    query_BT1, key_B1T = blocks_BT[:, :, None], blocks_BT[:, None, :]
    noisy_noisy = together_BTT & (query_BT1 == key_B1T)
    noisy_clean = together_BTT & (query_BT1 > key_B1T)
    clean_clean = together_BTT & (clean_BT[:, :, None] >= clean_BT[:, None, :])
    top = torch.cat((noisy_noisy, noisy_clean), dim=2)
    bottom = torch.cat((torch.zeros_like(together_BTT), clean_clean), dim=2)
    return torch.cat((top, bottom), dim=1)
