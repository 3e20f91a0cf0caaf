"""CALM's autoencoder (arXiv 2510.27688): K tokens to one vector and back.

Each token's embedding goes through a gated MLP; all K side by side, a linear layer makes one of
them, a second MLP follows, and two rows of numbers come out: mean and log standard deviation of the
vector. The way back mirrors it, and the embedding is the output layer too. No patch sees another.

Its config.json has `model_type` anyorder_calm_autoencoder and the fields of `AutoencoderSizes`. The
paper's own checkpoints are pickled and are not read.

Shape suffixes: M patches, K tokens of a patch, L width of a patch's vector, W width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from anyorder.core.errors import CheckpointError
from anyorder.model.fields import Fields
from anyorder.model.layers import RmsNorm
from anyorder.model.plain_folder import fill_plain
from anyorder.model.safetensors_folder import SafetensorsFolder, read_json
from anyorder.model.transformer import make_embedding

MODEL_TYPE = "anyorder_calm_autoencoder"
_ROWS_AT_A_TIME = 256
"""Of logits; bounds the memory for many draws of a patch."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderSizes:
    """What the network looks like, under the names of its config.json."""

    vocab_size: int
    patch_size: int
    hidden_size: int
    intermediate_size: int
    latent_size: int
    fill_token_id: int
    """Stands behind a text's end in its last patch."""

    def fields(self) -> dict[str, Any]:
        """config.json"""
        return {"model_type": MODEL_TYPE, **asdict(self), "eos_token_id": self.fill_token_id}


class GatedBlock(nn.Module):
    """x + down(SiLU(gate(norm(x))) * up(norm(x)))"""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = RmsNorm(width, 1e-6)
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape as `x`."""
        gate, up = self.gate_up(self.norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)  # type: ignore[no-any-return]


class CalmAutoencoder(nn.Module):
    """Patches to vectors and back."""

    def __init__(self, sizes: AutoencoderSizes) -> None:
        super().__init__()
        width, inner = sizes.hidden_size, sizes.intermediate_size
        self.sizes = sizes
        self.embedding = make_embedding(sizes.vocab_size, width)
        self.token_block = GatedBlock(width, inner)
        self.squeeze = nn.Linear(sizes.patch_size * width, width)
        self.patch_block = GatedBlock(width, inner)
        self.patch_norm = RmsNorm(width, 1e-6)
        self.moments = nn.Linear(width, 2 * sizes.latent_size)
        self.unsqueeze = nn.Linear(sizes.latent_size, width)
        self.vector_block = GatedBlock(width, inner)
        self.unfold = nn.Linear(width, sizes.patch_size * width)
        self.output_block = GatedBlock(width, inner)
        self.output_norm = RmsNorm(width, 1e-6)

    @property
    def patch_size(self) -> int:
        """K"""
        return self.sizes.patch_size

    @property
    def fill_token(self) -> int:
        """Stands behind a text's end in its last patch."""
        return self.sizes.fill_token_id

    def posterior(
        self, tokens_MK: torch.Tensor, kept_MK: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log standard deviation of the patches' vectors, [M, L] each. Tokens that are not
        `kept` are not seen."""
        x_MKW = self.embedding(tokens_MK)
        if kept_MK is not None:
            x_MKW = x_MKW * kept_MK[:, :, None]
        x_MW = self.squeeze(self.token_block(x_MKW).flatten(1))
        mean_ML, log_std_ML = self.moments(self.patch_norm(self.patch_block(x_MW))).chunk(2, dim=-1)
        return mean_ML, log_std_ML

    def reconstruct(self, vectors_ML: torch.Tensor) -> torch.Tensor:
        """Hidden states [M * K, W] of the patches' tokens."""
        x_MW = self.vector_block(self.unsqueeze(vectors_ML))
        x_NW = self.unfold(x_MW).view(len(vectors_ML) * self.patch_size, -1)
        return self.output_norm(self.output_block(x_NW))  # type: ignore[no-any-return]

    def logits(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """float32 logits [M, V] of some rows of `reconstruct`."""
        return F.linear(hidden_MW, self.embedding.weight).float()

    def tokens(self, vectors_ML: torch.Tensor) -> torch.Tensor:
        """The likeliest tokens [M, K] of some vectors."""
        hidden_NW = self.reconstruct(vectors_ML)
        parts = torch.split(hidden_NW, _ROWS_AT_A_TIME)
        best = [self.logits(part_MW).argmax(-1) for part_MW in parts]
        return torch.cat(best).view(len(vectors_ML), self.patch_size)


@torch.no_grad()
def start(parameters: Iterable[tuple[str, nn.Parameter]], *, seed: int) -> None:
    """First weights, the same for the same seed: norms at 1, biases at 0, embeddings with a
    standard deviation of 0.02, matrices as small as they are wide."""
    rng = torch.Generator().manual_seed(seed)
    for name, parameter in parameters:
        if parameter.dim() < 2:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        elif "embedding" in name:
            parameter.normal_(0.0, 0.02, generator=rng)
        else:
            parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=rng)


def read_sizes(data: Mapping[str, Any], origin: str) -> AutoencoderSizes:
    """The sizes in a config.json; CheckpointError if it is not an autoencoder's or is damaged."""
    fields = Fields(data, origin)
    if data.get("model_type") != MODEL_TYPE:
        raise CheckpointError(
            f"{origin} is of the kind {data.get('model_type')!r}; CALM needs an autoencoder "
            f"({MODEL_TYPE}), which the objective calm_autoencoder trains."
        )
    sizes = AutoencoderSizes(
        vocab_size=fields.size("vocab_size"),
        patch_size=fields.size("patch_size"),
        hidden_size=fields.size("hidden_size"),
        intermediate_size=fields.size("intermediate_size"),
        latent_size=fields.size("latent_size"),
        fill_token_id=fields.integer("fill_token_id"),
    )
    if sizes.fill_token_id >= sizes.vocab_size:
        raise fields.refuse("fill_token_id", f"token ids are 0 to {sizes.vocab_size - 1}.")
    return sizes


def load_autoencoder(
    folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> CalmAutoencoder:
    """The autoencoder in a folder, in evaluation mode; CheckpointError if there is none."""
    sizes = read_sizes(read_json(folder / "config.json"), str(folder / "config.json"))
    with torch.device("meta"):
        network = CalmAutoencoder(sizes)
    source = SafetensorsFolder(folder)
    fill_plain(network, source, owner="a CALM autoencoder", dtype=dtype, device=device)
    return network.eval()
