"""CALM (arXiv 2510.27688): a decoder that goes from patch to patch and draws vectors, not tokens.

What it reads are the tokens of each patch: their embeddings side by side, through a small MLP. A
LLaMA-style stack follows. From its hidden state and uniform noise, an MLP head makes the vector of
the next patch in one go, and the autoencoder makes tokens of that. There are no probabilities to be
had, only draws. The first patch of a text cannot be drawn, as nothing stands before it.

For the engine (`core.vectors.PatchNetwork`) a place of the cache is a patch; its tokens come as the
row's conditioning, and the token of the row itself is not read.

A folder holds the autoencoder too. Its config.json is LLaMA's with `model_type` anyorder_calm and
patch_size, latent_size, noise_size, num_mlp_layers, and the autoencoder's own fields under
`autoencoder`. Heads by diffusion or flow matching, the paper's alternatives, are not here.

Shape suffixes: N packed patches, M some of them, K tokens of a patch, S samples, L width of a
patch's vector, Z width of noise, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from anyorder.core.batch import KeyValuePool, PackedBatch
from anyorder.core.errors import CheckpointError
from anyorder.core.method import Abilities
from anyorder.model.architectures.llama import Llama
from anyorder.model.calm_autoencoder import CalmAutoencoder, read_sizes, start
from anyorder.model.config import ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.layers import RmsNorm
from anyorder.model.plain_folder import fill_plain
from anyorder.model.rotary import rotation
from anyorder.model.safetensors_folder import SafetensorsFolder, read_json
from anyorder.model.tokenizer import Tokenizer
from anyorder.model.transformer import Layer, make_embedding

MODEL_TYPE = "anyorder_calm"
_MOST_BLOCKS = 64


class HeadBlock(nn.Module):
    """x + down(SiLU(gate) * up), where gate and up are linear in norm(x) and the hidden state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.from_vector = nn.Linear(width, 2 * width)
        self.from_hidden = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(width, width)

    def forward(self, x_MSW: torch.Tensor, hidden_M1W: torch.Tensor) -> torch.Tensor:
        """Same shape as `x_MSW`."""
        mixed = self.from_vector(self.norm(x_MSW)) + self.from_hidden(hidden_M1W)
        gate, up = mixed.chunk(2, dim=-1)
        return x_MSW + self.down(F.silu(gate) * up)  # type: ignore[no-any-return]


class EnergyHead(nn.Module):
    """Vectors from hidden states and noise."""

    def __init__(self, *, width: int, noise_width: int, vector_width: int, num_blocks: int) -> None:
        super().__init__()
        self.noise = nn.Linear(noise_width, width)
        self.noise_norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, width)
        self.hidden_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(HeadBlock(width) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.out = nn.Linear(width, vector_width)

    def forward(self, hidden_MW: torch.Tensor, noise_MSZ: torch.Tensor) -> torch.Tensor:
        """[M, S, L]"""
        hidden_M1W = self.hidden_norm(self.hidden(hidden_MW))[:, None]
        x_MSW = self.noise_norm(self.noise(noise_MSZ))
        for block in self.blocks:
            x_MSW = block(x_MSW, hidden_M1W)
        return self.out(F.silu(self.inner(self.norm(x_MSW))))  # type: ignore[no-any-return]


class Calm(nn.Module):
    """The language model over vectors, with its autoencoder."""

    def __init__(
        self,
        config: ModelConfig,
        autoencoder: CalmAutoencoder,
        *,
        noise_width: int,
        num_blocks: int,
    ) -> None:
        super().__init__()
        width = config.width
        self.config = config
        """Of the stack."""
        self.autoencoder = autoencoder
        self.noise_width = noise_width
        self.embedding = make_embedding(config.vocabulary_size, width)
        self.squeeze = nn.Linear(autoencoder.patch_size * width, width)
        self.squeeze_out = nn.Linear(width, width)
        self.squeeze_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(len(config.layers)))
        self.final_norm = RmsNorm(width, config.norm_epsilon)
        self.head = EnergyHead(
            width=width,
            noise_width=noise_width,
            vector_width=autoencoder.sizes.latent_size,
            num_blocks=num_blocks,
        )

    @property
    def patch_size(self) -> int:
        """K"""
        return self.autoencoder.patch_size

    @property
    def fill_token(self) -> int:
        """Stands behind a text's end in its last patch."""
        return self.autoencoder.fill_token

    @property
    def cache_shapes(self) -> list[tuple[int, int]]:
        """(key/value heads, head width) of every layer; a place of the cache is a patch's."""
        return [(self.config.num_kv_heads, self.config.head_width)] * len(self.layers)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, activations and cache."""
        return self.embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where weights, activations and cache live."""
        return self.embedding.weight.device

    def hidden(self, batch: PackedBatch, pool: KeyValuePool | None = None) -> torch.Tensor:
        """`hidden_patches` of the patches that the rows are conditioned on."""
        patches = [tokens_MK for _, tokens_MK in sorted(batch.conditioning, key=lambda c: c[0])]
        return self.hidden_patches(torch.cat(patches).to(self.device), batch, pool)

    def heads(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """See Network: there are none."""
        raise AssertionError("this network has no prediction heads")

    def hidden_patches(
        self, tokens_NK: torch.Tensor, batch: PackedBatch, pool: KeyValuePool | None = None
    ) -> torch.Tensor:
        """Final hidden states [N, W]. `batch` is of one row a patch; its tokens are not read."""
        x_NW = F.silu(self.squeeze(self.embedding(tokens_NK).flatten(1)))
        x_NW = self.squeeze_norm(self.squeeze_out(x_NW))
        rotations = {
            rope: rotation(rope, batch.positions_N, x_NW.dtype) for rope in self.config.ropes
        }
        for index, module in enumerate(self.layers):
            rope = self.config.layers[index].rope
            turn = None if rope is None else rotations[rope]
            x_NW = cast(Layer, module)(x_NW, turn, batch, pool)
        return self.final_norm(x_NW)  # type: ignore[no-any-return]

    def draw(self, hidden_MW: torch.Tensor, noise_MSZ: torch.Tensor) -> torch.Tensor:
        """Vectors [M, S, L] of the patches after some rows of `hidden_patches`; the noise is
        uniform in [-1/2, 1/2]."""
        return self.head(hidden_MW, noise_MSZ)  # type: ignore[no-any-return]

    def next_patches(self, hidden_MW: torch.Tensor, noise_MSZ: torch.Tensor) -> torch.Tensor:
        """The likeliest tokens [M, S, K] of what `draw` makes of some noise."""
        vectors_MSL = self.draw(hidden_MW, noise_MSZ)
        return self.tokens(vectors_MSL.flatten(0, 1)).view(*vectors_MSL.shape[:2], -1)

    def posterior(
        self, tokens_MK: torch.Tensor, kept_MK: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The autoencoder's."""
        return self.autoencoder.posterior(tokens_MK, kept_MK)

    def reconstruct(self, vectors_ML: torch.Tensor) -> torch.Tensor:
        """The autoencoder's."""
        return self.autoencoder.reconstruct(vectors_ML)

    def logits(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """The autoencoder's, of some rows of `reconstruct`."""
        return self.autoencoder.logits(hidden_MW)

    def tokens(self, vectors_ML: torch.Tensor) -> torch.Tensor:
        """The likeliest tokens [M, K] of some vectors."""
        return self.autoencoder.tokens(vectors_ML)


def make_calm(fields: Mapping[str, Any], autoencoder: CalmAutoencoder, *, seed: int) -> Calm:
    """A new one with the stack and the head that config.json's `fields` describe, around a trained
    autoencoder. All vectors start at 0."""
    network = _empty(Fields(fields, "[model] of the recipe"), autoencoder)
    own = [entry for entry in network.named_parameters() if not entry[0].startswith("autoencoder.")]
    start(own, seed=seed)
    with torch.no_grad():
        network.head.out.weight.zero_()
        for name, parameter in network.layers.named_parameters():
            if name.endswith(("attention.out.weight", "mlp.down.weight")):
                parameter.mul_((2 * len(network.layers)) ** -0.5)
    return network


def load_calm(
    folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Calm:
    """The model in a folder with its autoencoder, in evaluation mode; CheckpointError if there is
    none."""
    origin = folder / "config.json"
    data = read_json(origin)
    if data.get("model_type") != MODEL_TYPE:
        raise CheckpointError(
            f"{origin} is of the kind {data.get('model_type')!r}, not {MODEL_TYPE}; the objective "
            "calm_energy trains such a model."
        )
    fields = Fields(data, str(origin))
    nested = data.get("autoencoder")
    sizes = read_sizes(nested if isinstance(nested, dict) else {}, f"autoencoder in {origin}")
    with torch.device("meta"):
        network = _empty(fields, CalmAutoencoder(sizes))
    source = SafetensorsFolder(folder)
    fill_plain(network, source, owner="a CALM model", dtype=dtype, device=device)
    return network.eval()


def calm_abilities(name: str, network: Calm, tokenizer: Tokenizer | None) -> Abilities:
    """What a model can do, with its tokenizer."""
    ends = tokenizer.end_tokens if tokenizer is not None else frozenset()
    return Abilities(
        name=name,
        vocabulary_size=network.config.vocabulary_size,
        context_length=network.config.context_length,
        end_tokens=ends | network.config.end_tokens | {network.fill_token},
        kind="calm",
        patch_size=network.patch_size,
        fill_token=network.fill_token,
    )


def _empty(fields: Fields, autoencoder: CalmAutoencoder) -> Calm:
    config, sizes = Llama.config(fields), autoencoder.sizes
    for name, own in (
        ("vocab_size", sizes.vocab_size),
        ("patch_size", sizes.patch_size),
        ("latent_size", sizes.latent_size),
    ):
        if fields.size(name) != own:
            raise fields.refuse(name, f"its autoencoder has {own}.")
    num_blocks = fields.size("num_mlp_layers")
    if num_blocks > _MOST_BLOCKS:
        raise fields.refuse("num_mlp_layers", f"at most {_MOST_BLOCKS} are supported.")
    return Calm(config, autoencoder, noise_width=fields.size("noise_size"), num_blocks=num_blocks)
