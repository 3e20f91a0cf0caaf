"""A decoder: the transformer that inference runs, new or fine-tuned.

New ones are LLaMA's kind (rotary positions, gated MLP) or, with learned positions, GPT-2's (layer
norms, plain MLP; Radford et al. 2019). In a text that is all masks nothing but learned positions
tells one place from another. Weights start as in GPT-2. Anything else that a checkpoint may be
(experts, sliding windows, ...) can be fine-tuned, not made anew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch

from anyorder.core.errors import InvalidRequest, UserError
from anyorder.core.method import Abilities
from anyorder.core.options import Range
from anyorder.model import catalog
from anyorder.model.architecture import architecture, for_model_type
from anyorder.model.checkpoint import open_folder, open_gguf
from anyorder.model.config import ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.gguf import GGUFFile
from anyorder.model.loading import load_network
from anyorder.model.recorded import record
from anyorder.model.safetensors_folder import read_json
from anyorder.model.saving import llama_fields, save_model
from anyorder.model.transformer import Transformer
from anyorder.training.adapters import adapt, merged, save_adapter
from anyorder.training.network import NetworkRecipe, Surroundings, Trainee

_SPREAD = 0.02
"""Standard deviation of new weights, as in GPT-2 and LLaMA."""
_SIZES = ("width", "layers", "heads", "kv_heads", "mlp_width", "context", "positions")


@dataclass(frozen=True, kw_only=True)
class Decoder(NetworkRecipe):
    """A checkpoint to go on from, or the sizes of a new decoder."""

    adaptable: ClassVar[bool] = True

    init: Annotated[str | None, "name or folder of a model to fine-tune; then no sizes"] = None
    width: Annotated[int | None, Range(8), "of the residual stream"] = None
    layers: Annotated[int | None, Range(1, 1000), "attention and MLP layers"] = None
    heads: Annotated[int | None, Range(1), "query heads"] = None
    kv_heads: Annotated[int | None, Range(1), "key/value heads; none: as many as heads"] = None
    mlp_width: Annotated[
        int | None, Range(1), "of the MLP; none: 8/3 of width, with learned positions 4 times"
    ] = None
    context: Annotated[int | None, Range(2), "longest sequence; none: [data] length"] = None
    positions: Annotated[
        Literal["rotary", "learned"] | None, "none: rotary; learned makes a GPT-2-style decoder"
    ] = None
    tied_embeddings: Annotated[bool, "the embedding is the output layer too"] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in _SIZES if getattr(self, name) is not None]
        if self.init is not None:
            if given:
                raise InvalidRequest(
                    f"[model] has init and {given[0]}; a model to fine-tune brings its own sizes: "
                    "leave one of the two out."
                )
            return
        if missing := [name for name in ("width", "layers", "heads") if name not in given]:
            raise InvalidRequest(
                f"[model] lacks {missing[0]}; give width, layers and heads, or init to fine-tune."
            )
        assert self.width is not None and self.heads is not None, "just checked"
        if self.width % (2 * self.heads):
            near = 2 * self.heads * max(self.width // self.heads // 2, 1)
            raise InvalidRequest(
                f"[model] width must be an even multiple of heads, got {self.width} and "
                f"{self.heads}; try width = {near}."
            )
        if self.heads % (self.kv_heads or self.heads):
            raise InvalidRequest(
                f"[model] heads must be a multiple of kv_heads, got {self.heads} and "
                f"{self.kv_heads}."
            )
        if self.positions == "learned" and self.kv_heads not in (None, self.heads):
            raise InvalidRequest(
                "[model] positions = learned makes a GPT-2-style decoder, which has as many "
                f"kv_heads as heads ({self.heads}), got {self.kv_heads}; leave kv_heads out."
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
        """A new decoder, or the one to fine-tune."""
        if self.init is None:
            fields = self._fields(surroundings)
            family = for_model_type(fields["model_type"])
            config = family.config(Fields(fields, "[model] of the recipe"))
            network = _start(Transformer.random(config, seed=surroundings.seed, spread=_SPREAD))
            abilities = _abilities("the recipe's model", config, surroundings)
        else:
            network, fields = _load(surroundings.locate(self.init))
            if surroundings.grows:
                network, fields = _grown(network, fields, surroundings.tokenizer.vocabulary_size)
            config = network.config
            abilities = _abilities(self.init, config, surroundings)
        network.requires_grad_(True)
        if surroundings.adapter is not None:
            adapt(network, surroundings.adapter, seed=surroundings.seed)
        return Trainee(
            network=network, abilities=abilities, fields=fields, adapter=surroundings.adapter
        )

    def save(self, folder: Path, trainee: Trainee, tokenizer_folder: Path) -> None:
        """A model folder for `anyorder.Engine` and for transformers, or one of adapters."""
        network, adapter = trainee.network, trainee.adapter
        assert isinstance(network, Transformer), "make() made one"
        if adapter is not None and adapter.export == "adapter":
            assert self.init is not None, "only what is fine-tuned has adapters"
            save_adapter(folder, network, adapter, self.init, tokenizer_folder)
            return
        if adapter is not None:
            network = merged(network)
        save_model(folder, network, record(trainee.fields, trainee.abilities), tokenizer_folder)

    def _fields(self, surroundings: Surroundings) -> dict[str, Any]:
        """config.json of a new decoder."""
        assert self.width is not None and self.layers is not None and self.heads is not None
        tokenizer = surroundings.tokenizer
        context = self.context or surroundings.length
        end_token = min(tokenizer.end_tokens, default=None)
        if self.positions != "learned":
            # 8/3, so that the gated MLP has as many weights as a plain one of 4; a multiple of 32.
            return llama_fields(
                vocabulary_size=tokenizer.vocabulary_size,
                width=self.width,
                num_layers=self.layers,
                num_heads=self.heads,
                num_kv_heads=self.kv_heads or self.heads,
                mlp_width=self.mlp_width or -(-self.width * 8 // (3 * 32)) * 32,
                context_length=context,
                tied_embeddings=self.tied_embeddings,
                end_token=end_token,
            )
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": tokenizer.vocabulary_size,
            "n_embd": self.width,
            "n_layer": self.layers,
            "n_head": self.heads,
            "n_inner": self.mlp_width or 4 * self.width,
            "n_positions": context,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            # transformers would use dropout in training, by these fields' defaults.
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "tie_word_embeddings": self.tied_embeddings,
            "bos_token_id": end_token,
            "eos_token_id": end_token,
            "torch_dtype": "float32",
        }


def _load(source: str) -> tuple[Transformer, dict[str, Any]]:
    """The decoder to fine-tune in float32, and its config.json."""
    found = catalog.resolve(source)
    if found.kind == "folder":
        fields = read_json(found.path / "config.json")
        config, tensors = open_folder(found.path)
        return load_network(config, tensors, dtype=torch.float32), fields
    # Its weights are rounded, and are trained as they are read.
    with GGUFFile(found.path) as file:
        config, tensors = open_gguf(file)
        family = architecture(config.architecture)
        fields = {"model_type": family.model_types[0], **family.gguf_fields(file.metadata, tensors)}
        return load_network(config, tensors, dtype=torch.float32), fields


@torch.no_grad()
def _grown(
    network: Transformer, fields: dict[str, Any], vocabulary_size: int
) -> tuple[Transformer, dict[str, Any]]:
    """The network with rows for further tokens, each the mean of those that are there: a new token
    is then as likely as a token is on average (Hewitt, 2021)."""
    if vocabulary_size <= network.config.vocabulary_size:
        return network, fields
    fields = {**fields, "vocab_size": vocabulary_size}
    config = replace(network.config, vocabulary_size=vocabulary_size)
    if architecture(config.architecture).config(Fields(fields, "config.json")) != config:
        raise UserError(
            f"a {config.architecture} checkpoint cannot take further tokens here; use a tokenizer "
            "that has those that the objective needs, and leave add_tokens out."
        )
    grown = Transformer.random(config, seed=0, dtype=network.dtype)
    old = dict(network.named_parameters())
    for name, parameter in grown.named_parameters():
        rows = len(old[name])
        parameter[:rows] = old[name]
        parameter[rows:] = old[name].mean(dim=0)
    return grown, fields


def _abilities(name: str, config: ModelConfig, surroundings: Surroundings) -> Abilities:
    return Abilities(
        name=name,
        vocabulary_size=config.vocabulary_size,
        context_length=config.context_length,
        end_tokens=config.end_tokens | surroundings.tokenizer.end_tokens,
        mask_token=surroundings.tokenizer.mask_token,
        num_layers=len(config.layers),
        infill_tokens=surroundings.tokenizer.infill_tokens,
        plan_tokens=surroundings.tokenizer.plan_tokens,
    )


@torch.no_grad()
def _start(network: Transformer) -> Transformer:
    """Norms start at 1 and biases at 0, and what each layer adds to the residual stream starts
    smaller the more layers there are (GPT-2)."""
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif "norm" in name:
            parameter.fill_(1.0)
        elif name.endswith(("attention.out.weight", "mlp.down.weight")):
            parameter.mul_((2 * len(network.layers)) ** -0.5)
    return network
