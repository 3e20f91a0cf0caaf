"""An encoder-decoder (arXiv 1706.03762): one stack reads a source, the other writes its target.

New ones are mBART's kind (arXiv 2001.08210): learned positions, norms before each branch, one
embedding for both sides and, where tied, the head. Saved ones load into `anyorder.Engine`, and into
transformers. With `length_head`, the encoder's output at a source's first token predicts how long
the target is, for objectives whose decoder fills in masks; with `vertices_per_token` its decoder
makes a graph of vertices (objective dag) or, with `links = false`, a row of them (ctc). `edits`
adds heads that tell what a text lacks and what does not belong (insertion).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

from anyorder.core.errors import InvalidRequest, UserError
from anyorder.core.options import Range
from anyorder.model.architecture import for_model_type
from anyorder.model.checkpoint import open_folder
from anyorder.model.encoder_decoder import EncoderDecoder as Network
from anyorder.model.fields import Fields
from anyorder.model.loaded import abilities_of
from anyorder.model.loading import load_network
from anyorder.model.recorded import record
from anyorder.model.safetensors_folder import read_json
from anyorder.model.saving import save_model
from anyorder.training.network import NetworkRecipe, Surroundings, Trainee
from anyorder.training.setup import tokenizer_folder

_SPREAD = 0.02
"""Standard deviation of new weights, as in GPT-2 and BART."""
_SIZES = ("width", "encoder_layers", "decoder_layers", "heads", "mlp_width", "context")
_NEEDED = ("width", "encoder_layers", "decoder_layers", "heads")


@dataclass(frozen=True, kw_only=True)
class EncoderDecoder(NetworkRecipe):
    """A checkpoint to go on from, or the sizes of a new encoder-decoder."""

    init: Annotated[str | None, "name or folder of a model to fine-tune; then no sizes"] = None
    width: Annotated[int | None, Range(8), "of the residual streams"] = None
    encoder_layers: Annotated[int | None, Range(1, 1000), "attention and MLP layers"] = None
    decoder_layers: Annotated[int | None, Range(1, 1000), "with cross-attention in between"] = None
    heads: Annotated[int | None, Range(1), "of all attention"] = None
    mlp_width: Annotated[int | None, Range(1), "of the MLPs; none: 4 times width"] = None
    context: Annotated[
        int | None, Range(2), "longest source and longest target; none: [data] length"
    ] = None
    tied_embeddings: Annotated[bool, "the embedding is the output layer too"] = True
    length_head: Annotated[bool, "predict the target's length from the source"] = False
    vertices_per_token: Annotated[
        int, Range(0, 64), "places to write in one pass, for each token of the source; 0: none"
    ] = 0
    links: Annotated[bool, "between vertices, which then are a graph"] = True
    edits: Annotated[bool, "tell what a text lacks, and what does not belong there"] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in _SIZES if getattr(self, name) is not None]
        if self.init is not None:
            given += [n for n in ("length_head", "vertices_per_token", "edits") if getattr(self, n)]
            given += [] if self.links else ["links"]
            if given:
                raise InvalidRequest(
                    f"[model] has init and {given[0]}; a model to fine-tune brings its own: leave "
                    "one of the two out."
                )
            return
        if missing := [name for name in _NEEDED if name not in given]:
            raise InvalidRequest(
                f"[model] lacks {missing[0]}; give {', '.join(_NEEDED)}, or init to fine-tune."
            )
        assert self.width is not None and self.heads is not None, "just checked"
        if self.width % self.heads:
            near = self.heads * max(self.width // self.heads, 1)
            raise InvalidRequest(
                f"[model] width must be a multiple of heads, got {self.width} and {self.heads}; "
                f"try width = {near}."
            )

    @property
    def source(self) -> str | None:
        """The checkpoint."""
        return self.init

    @property
    def longest(self) -> int | None:
        """The context, where it is given."""
        return self.context

    def make(self, surroundings: Surroundings) -> Trainee:
        """A new encoder-decoder, or the one to fine-tune."""
        if self.init is None:
            fields = self._fields(surroundings)
            config = for_model_type("mbart").config(Fields(fields, "[model] of the recipe"))
            network = Network.random(config, seed=surroundings.seed, spread=_SPREAD)
            _start(network)
            name = "the recipe's model"
        else:
            folder = tokenizer_folder(surroundings.locate(self.init))
            fields = read_json(folder / "config.json")
            config, tensors = open_folder(folder)
            if config.encoder is None:
                raise UserError(
                    f"{self.init} has no encoder; fine-tune it with [model] kind decoder."
                )
            loaded = load_network(config, tensors, dtype=torch.float32)
            assert isinstance(loaded, Network), "it has an encoder"
            network, name = loaded, self.init
        abilities = abilities_of(name, config, surroundings.tokenizer)
        return Trainee(network=network.requires_grad_(True), abilities=abilities, fields=fields)

    def save(self, folder: Path, trainee: Trainee, tokenizer_folder: Path) -> None:
        """A model folder for `anyorder.Engine` and for transformers."""
        assert isinstance(trainee.network, Network), "make() made one"
        fields = record(trainee.fields, trainee.abilities)
        save_model(folder, trainee.network, fields, tokenizer_folder)

    def _fields(self, surroundings: Surroundings) -> dict[str, Any]:
        """config.json of a new network."""
        tokenizer = surroundings.tokenizer
        end = min(tokenizer.end_tokens, default=None)
        start = end if tokenizer.bos_token is None else tokenizer.bos_token
        if start is None:
            raise UserError(
                "the decoder of an encoder-decoder begins with a token of its own, and the "
                "tokenizer has neither a BOS nor an end token; use one that has."
            )
        assert self.width is not None, "checked when the recipe was read"
        # A graph has vertices for the source's two ends as well, and needs a position for each.
        context = self.context or (
            self.vertices_per_token * (surroundings.length + 2) or surroundings.length
        )
        sides = {
            f"{side}_{name}": value
            for side, layers in (("encoder", self.encoder_layers), ("decoder", self.decoder_layers))
            for name, value in {
                "layers": layers,
                "attention_heads": self.heads,
                "ffn_dim": self.mlp_width or 4 * self.width,
            }.items()
        }
        return {
            "architectures": ["MBartForConditionalGeneration"],
            "model_type": "mbart",
            "is_encoder_decoder": True,
            "vocab_size": tokenizer.vocabulary_size,
            "d_model": self.width,
            **sides,
            "max_position_embeddings": context,
            "activation_function": "gelu",
            "scale_embedding": False,
            # transformers would use dropout in training, by this field's default.
            "dropout": 0.0,
            "tie_word_embeddings": self.tied_embeddings,
            "length_classes": context + 1 if self.length_head else 0,
            "link_heads": self.heads if self.vertices_per_token and self.links else 0,
            "vertices_per_token": self.vertices_per_token,
            "insertion_classes": context + 1 if self.edits else 0,
            "decoder_start_token_id": start,
            "bos_token_id": start,
            "eos_token_id": end,
            "pad_token_id": end,
            "forced_eos_token_id": None,
            "torch_dtype": "float32",
        }


@torch.no_grad()
def _start(network: Network) -> None:
    """Norms start at 1 and biases at 0, and what each branch adds to a residual stream starts
    smaller the more branches there are (GPT-2)."""
    branches = {"encoder": 2 * len(network.encoder.layers), "": 3 * len(network.layers)}
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif "norm" in name:
            parameter.fill_(1.0)
        elif name.endswith((".out.weight", "mlp.down.weight")):
            side = "encoder" if name.startswith("encoder.") else ""
            parameter.mul_(branches[side] ** -0.5)
