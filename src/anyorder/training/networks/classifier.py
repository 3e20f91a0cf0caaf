"""A classifier of texts with early exits (FastBERT); see `model.classifier`.

The backbone is new, or a decoder's or a classifier's from `init`, and attends both ways. Without
`exits` all of it is trained, with one classifier at its end. With `exits`, which needs the result
of such a run as `init`, a classifier comes after every other layer too, and those alone are
trained.

A label is known by its first token; labels must differ in it. A tokenizer that is trained on the
labelled documents makes frequent labels one token each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

from anyorder.core.errors import InvalidRequest, UserError
from anyorder.core.method import Abilities
from anyorder.core.options import Range
from anyorder.model.architecture import for_model_type
from anyorder.model.checkpoint import open_folder
from anyorder.model.classifier import Classifier as Network
from anyorder.model.classifier import is_classifier, load_classifier, save_classifier
from anyorder.model.fields import Fields
from anyorder.model.loading import load_network
from anyorder.model.safetensors_folder import read_json
from anyorder.model.saving import llama_fields
from anyorder.model.tokenizer import Tokenizer
from anyorder.model.transformer import Transformer
from anyorder.training.drafting import start
from anyorder.training.network import NetworkRecipe, Surroundings, Trainee
from anyorder.training.setup import tokenizer_folder


@dataclass(frozen=True, kw_only=True)
class Classifier(NetworkRecipe):
    """Layers that read both ways, and classifiers on them."""

    labels: Annotated[
        Sequence[str], "texts that stand for the kinds; none: those of the classifier in init"
    ] = ()
    exits: Annotated[bool, "add and train a classifier after every layer, and nothing else"] = False
    narrow: Annotated[int, Range(2), "width of the classifiers, an even number"] = 64
    init: Annotated[str | None, "name or folder of a decoder or classifier; then no sizes"] = None
    width: Annotated[int | None, Range(8), "of the residual stream"] = None
    layers: Annotated[int | None, Range(1, 1000), "attention and MLP layers"] = None
    heads: Annotated[int | None, Range(1), "query heads"] = None
    context: Annotated[int | None, Range(2), "longest sequence; none: [data] length"] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(isinstance(label, str) and label for label in self.labels):
            raise InvalidRequest(f"[model] labels must be a list of texts, got {self.labels!r}.")
        if self.narrow % 2:
            raise InvalidRequest(f"[model] narrow must be even, got {self.narrow}.")
        sizes = {name: getattr(self, name) for name in ("width", "layers", "heads")}
        given = [name for name, size in {**sizes, "context": self.context}.items() if size]
        if self.init is not None and given:
            raise InvalidRequest(
                f"[model] has init and {given[0]}; a model to go on from brings its own sizes: "
                "leave one of the two out."
            )
        if self.init is None and (missing := [name for name, size in sizes.items() if not size]):
            raise InvalidRequest(
                f"[model] lacks {missing[0]}; give width, layers and heads, or init."
            )
        if self.init is None and self.exits:
            raise InvalidRequest(
                "[model] exits needs init, the folder of a classifier that was trained without."
            )
        if self.width and self.heads and self.width % (2 * self.heads):
            raise InvalidRequest(
                f"[model] width must be an even multiple of heads, got {self.width} and "
                f"{self.heads}."
            )

    @property
    def source(self) -> str | None:
        """The model to go on from."""
        return self.init

    @property
    def longest(self) -> int | None:
        """The context, where it is given."""
        return self.context

    def make(self, surroundings: Surroundings) -> Trainee:
        """A new classifier, or one on a backbone that was trained before."""
        backbone: Transformer | None = None
        if self.init is None:
            fields = self._fields(surroundings)
            family = for_model_type(fields["model_type"])
            config = family.config(Fields(fields, "[model] of the recipe"))
        else:
            folder = tokenizer_folder(surroundings.locate(self.init))
            fields = read_json(folder / "config.json")
            config, tensors = open_folder(folder)
            if is_classifier(folder):
                backbone = load_classifier(folder)
            else:
                backbone = load_network(config, tensors, dtype=torch.float32)
        labels = self._labels(backbone, surroundings.tokenizer)
        narrow = backbone.narrow if isinstance(backbone, Network) else self.narrow
        network = Network(config, labels=labels, narrow=narrow, exits=self.exits)
        start(network, surroundings.seed)
        _spread(network, surroundings.seed)
        if backbone is not None:
            network.take(backbone)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(not self.exits or network.is_of_an_exit(name))
        return Trainee(network=network, abilities=_abilities(network, self.init), fields=fields)

    def save(self, folder: Path, trainee: Trainee, tokenizer_folder: Path) -> None:
        """A folder for `model.classifier.load_classifier`."""
        assert isinstance(trainee.network, Network), "make() made one"
        save_classifier(folder, trainee.network, trainee.fields, tokenizer_folder)

    def _fields(self, surroundings: Surroundings) -> dict[str, Any]:
        """config.json of a new backbone."""
        assert self.width is not None and self.layers is not None and self.heads is not None
        return llama_fields(
            vocabulary_size=surroundings.tokenizer.vocabulary_size,
            width=self.width,
            num_layers=self.layers,
            num_heads=self.heads,
            num_kv_heads=self.heads,
            mlp_width=-(-self.width * 8 // (3 * 32)) * 32,
            context_length=self.context or surroundings.length,
            tied_embeddings=True,
            end_token=min(surroundings.tokenizer.end_tokens, default=None),
        )

    def _labels(self, backbone: Transformer | None, tokenizer: Tokenizer) -> dict[str, int]:
        """Names and first tokens."""
        if isinstance(backbone, Network):
            if self.labels:
                raise InvalidRequest(
                    f"[model] has labels, but the classifier in {self.init} knows its own; leave "
                    "labels out."
                )
            return backbone.labels
        if self.exits:
            raise UserError(
                f"{self.init} is no classifier, and exits learn from one; train it first, without "
                "exits."
            )
        if len(self.labels) < 2:
            raise InvalidRequest(
                f"[model] labels must be at least 2 texts, got {list(self.labels)}."
            )
        found: dict[str, int] = {}
        for label in self.labels:
            token = tokenizer.encode(label, add_special=False, parse_special=False)[0]
            if other := next((name for name, known in found.items() if known == token), None):
                raise UserError(
                    f"the labels {other!r} and {label!r} begin with the same token; labels are "
                    "told apart by their first: rename one."
                )
            found[label] = token
        return found


@torch.no_grad()
def _spread(network: Network, seed: int) -> None:
    """Classifiers start with outputs as large as their inputs: through four narrow layers in a row,
    a decoder's small weights would let nothing pass."""
    generator = torch.Generator().manual_seed(seed)
    for module in (network.branches, network.scores):
        for parameter in module.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)


def _abilities(network: Network, name: str | None) -> Abilities:
    config = network.config
    return Abilities(
        name=name or "the recipe's classifier",
        vocabulary_size=config.vocabulary_size,
        context_length=config.context_length,
        end_tokens=config.end_tokens,
        attention=frozenset({"bidirectional"}),
        num_heads=len(network.branches) - 1,
        kind="classifier",
    )
