"""A classifier of texts: a decoder's layers with attention both ways, and classifiers on them.

FastBERT (Liu et al., arXiv 2004.02178): one classifier after the last layer and, for early exit,
one of the same shape after every other: a norm, a projection to a narrow width, tanh, attention of
two heads among the narrow rows, a linear layer, tanh, and scores from the document's first row. A
text whose classifier is sure enough goes no further: `classify` stops for each text after the first
layer where the entropy of the labels' probabilities, over its largest value, is below `threshold`.

Labels are tokens of the vocabulary, so that a document is labelled by the token behind its text,
and the scores of all other tokens are minus infinity. The backbone may be any family's; its
checkpoint's folder holds the classifiers beside it, and `labels` in config.json. Differences to the
paper: norms before the branches (the layers' outputs are not normalised here), no dropout.

Shape suffixes: N packed tokens, M rows that are a document's first, C narrow width, K exits before
the last, L labels, V vocabulary, D documents, T tokens of the longest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from anyorder.core.batch import KeyValuePool, PackedBatch, dense_batch
from anyorder.core.errors import CheckpointError
from anyorder.model.architecture import architecture, name_map
from anyorder.model.attention import Attention
from anyorder.model.checkpoint import open_folder
from anyorder.model.config import LayerConfig, ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.layers import RmsNorm
from anyorder.model.loading import fill
from anyorder.model.rotary import rotation
from anyorder.model.safetensors_folder import read_json
from anyorder.model.saving import copy_tokenizer, named_tensors, whole_folder
from anyorder.model.transformer import Transformer

_KEY = "classifier"
"""Of config.json."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of one text."""

    label: str
    num_layers: int
    """Layers that were run."""
    uncertainty: float
    """Entropy of the labels' probabilities over its largest value, where it stopped."""
    flops: int
    """Additions and multiplications of all matrix products and of attention."""


class Branch(nn.Module):
    """A classifier on one layer's output, up to its scores."""

    def __init__(self, config: ModelConfig, width: int, *, inputs: int, norm: bool) -> None:
        super().__init__()
        narrow = replace(
            config,
            width=width,
            num_heads=2,
            num_kv_heads=2,
            head_width=width // 2,
            attention_width=None,
            qk_norm="none",
            clip_qkv=None,
            alibi=False,
            layers=(LayerConfig(attention_scale=(width // 2) ** -0.5),),
        )
        self.norm = RmsNorm(inputs, config.norm_epsilon) if norm else nn.Identity()
        self.narrow = nn.Linear(inputs, width)
        self.attention = Attention(narrow, 0)
        self.mix = nn.Linear(width, width)

    def forward(self, x_NW: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """[N, C], of which documents' first rows are of use."""
        narrow_NC = self.narrow(self.norm(x_NW)).tanh()
        return self.mix(self.attention(narrow_NC, None, batch, None)).tanh()  # type: ignore[no-any-return]


class Classifier(Transformer):
    """The backbone and its classifiers."""

    def __init__(
        self, config: ModelConfig, *, labels: Mapping[str, int], narrow: int, exits: bool
    ) -> None:
        super().__init__(replace(config, tied_embeddings=True, head_bias=False))
        self.labels = dict(labels)
        """Names and the tokens that stand for them."""
        self.narrow = narrow
        num_layers = len(config.layers)
        self.first = 1 if exits else num_layers
        """The number of layers before the first classifier."""
        depths = range(self.first, num_layers + 1)
        self.branches = nn.ModuleList(
            Branch(
                config,
                narrow,
                inputs=config.width
                if depth < num_layers
                else config.embedding_width or config.width,
                norm=depth < num_layers,  # the last one comes after the backbone's own
            )
            for depth in depths
        )
        self.scores = nn.ModuleList(nn.Linear(narrow, len(labels)) for _ in depths)

    @torch.no_grad()
    def take(self, other: Transformer) -> None:
        """Begin with another network's weights; those of its classifiers go to the same layers."""
        own = dict(self.named_parameters())
        shift = other.first - self.first if isinstance(other, Classifier) else 0
        for name, parameter in other.named_parameters():
            part, _, rest = name.partition(".")
            if part in ("branches", "scores"):
                index, _, rest = rest.partition(".")
                name = f"{part}.{int(index) + shift}.{rest}"
            if name in own:  # a decoder's head is not needed
                own[name].copy_(parameter)

    def is_of_an_exit(self, name: str) -> bool:
        """Does the parameter belong to a classifier before the last?"""
        part, index, *_ = *name.split("."), ""
        return part in ("branches", "scores") and int(index) < len(self.branches) - 1

    def hidden(self, batch: PackedBatch, pool: KeyValuePool | None = None) -> torch.Tensor:
        """[N, (K + 1) * C]: what each classifier's scores are made from, the last one's last."""
        batch.taps.update(dict.fromkeys(range(self.first, len(self.layers))))
        final_NW = super().hidden(batch, pool)
        found = []
        for index, branch in enumerate(self.branches):
            x_NW = batch.taps.get(self.first + index)
            found.append(branch(final_NW if x_NW is None else x_NW, batch))
        return torch.cat(found, dim=1)

    def logits(self, hidden_MW: torch.Tensor, tokens_S: torch.Tensor | None = None) -> torch.Tensor:
        """float32 scores [M, V] of the last classifier, or [M, S] of some tokens."""
        scores_MV = self._spread(self._score(hidden_MW.chunk(len(self.branches), dim=1)[-1], -1))
        return scores_MV if tokens_S is None else scores_MV[..., tokens_S]

    def heads(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """float32 scores [M, K, V] of the exits."""
        parts = hidden_MW.chunk(len(self.branches), dim=1)[:-1]
        scores = [self._score(part_MC, index) for index, part_MC in enumerate(parts)]
        return self._spread(torch.stack(scores, dim=1))

    @torch.no_grad()
    def classify(self, documents: Sequence[Sequence[int]], *, threshold: float) -> list[Verdict]:
        """Each document's label, found after as few layers as it takes to be so sure of it; a
        threshold of 0 runs them all. What lies beyond the context is not read."""
        documents = [document[: self.config.context_length] for document in documents]
        names, verdicts = list(self.labels), dict[int, Verdict]()
        lengths_D = torch.tensor([len(document) for document in documents], device=self.device)
        tokens_DT = torch.zeros(len(documents), int(lengths_D.max()), dtype=torch.int64)
        for row, document in enumerate(documents):
            tokens_DT[row, : len(document)] = torch.tensor(document)
        tokens_DT = tokens_DT.to(self.device)
        left_D = torch.arange(len(documents), device=self.device)
        batch = _padded(tokens_DT, lengths_D)
        x_NW = self._embed(batch)
        for depth, layer in enumerate(self.layers, start=1):
            rope = self.config.layers[depth - 1].rope
            turn = None if rope is None else rotation(rope, batch.positions_N, x_NW.dtype)
            x_NW = layer(x_NW, turn, batch, None)
            last = depth == len(self.layers)
            if depth < self.first or (threshold == 0 and not last):
                continue
            x_DTW = x_NW.view(len(left_D), -1, x_NW.shape[-1])
            probabilities_DL = self._judge(x_NW, depth, batch).softmax(dim=-1)
            entropies_D = -torch.special.xlogy(probabilities_DL, probabilities_DL).sum(dim=-1)
            uncertain_D = entropies_D / math.log(len(names))
            stay_D = torch.full_like(left_D, not last, dtype=torch.bool) & (
                uncertain_D >= threshold
            )
            for row in (~stay_D).nonzero()[:, 0].tolist():
                number = int(left_D[row])
                verdicts[number] = Verdict(
                    label=names[int(probabilities_DL[row].argmax())],
                    num_layers=depth,
                    uncertainty=float(uncertain_D[row]),
                    flops=self.flops(len(documents[number]), depth, exits=threshold > 0),
                )
            left_D, lengths_D = left_D[stay_D], lengths_D[stay_D]
            if not len(left_D):
                break
            # Padding that only those had needed is left out from here on.
            longest = int(lengths_D.max())
            tokens_DT = tokens_DT[stay_D, :longest]
            batch = _padded(tokens_DT, lengths_D)
            x_NW = x_DTW[stay_D, :longest].flatten(0, 1)
        return [verdicts[number] for number in range(len(documents))]

    def flops(self, length: int, num_layers: int, *, exits: bool) -> int:
        """For a document of `length` tokens that leaves after so many layers; without `exits` only
        the classifier there is run."""
        config = self.config
        attended = 4 * length**2
        total = 0
        for depth in range(1, num_layers + 1):
            matrices = sum(p.numel() for p in self.layers[depth - 1].parameters() if p.dim() == 2)
            total += 2 * length * matrices + attended * config.num_heads * config.head_width
            if depth == num_layers or (exits and depth >= self.first):
                branch = self.branches[depth - self.first]
                matrices = sum(p.numel() for p in branch.parameters() if p.dim() == 2)
                total += 2 * length * matrices + attended * self.narrow
                total += 2 * self.narrow * len(self.labels)
        return total

    def _judge(self, x_NW: torch.Tensor, depth: int, batch: PackedBatch) -> torch.Tensor:
        """Scores [D, L] after so many layers."""
        index = depth - self.first
        if depth == len(self.layers):
            x_NW = self.final_norm(x_NW)
            if self.config.embedding_width is not None:
                x_NW = self.project_out(x_NW)
        branch_NC = self.branches[index](x_NW, batch)
        return self._score(
            branch_NC.view(batch.groups[0].num_requests, -1, branch_NC.shape[-1])[:, 0], index
        )

    def _score(self, branch_MC: torch.Tensor, index: int) -> torch.Tensor:
        return self.scores[index](branch_MC).float()  # type: ignore[no-any-return]

    def _spread(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores [..., L] as scores [..., V] of the labels' tokens."""
        shape = (*scores.shape[:-1], self.config.vocabulary_size)
        spread = scores.new_full(shape, -torch.inf)
        spread[..., list(self.labels.values())] = scores
        return spread


def _padded(tokens_DT: torch.Tensor, lengths_D: torch.Tensor) -> PackedBatch:
    """Documents side by side, each with attention both ways within its length."""
    places_T = torch.arange(tokens_DT.shape[1], device=tokens_DT.device)
    inside_DT = places_T < lengths_D[:, None]
    # Padding is together too, so that no row sees nothing.
    return dense_batch(tokens_DT, inside_DT[:, :, None] == inside_DT[:, None, :])


# ------------------------------------------------------------------------------------------ folders
def save_classifier(
    folder: Path, network: Classifier, fields: Mapping[str, Any], tokenizer_folder: Path
) -> None:
    """Write the classifier's folder, in place of what was there; `fields` is the config.json of the
    backbone, whose tokenizer's files are copied."""
    family = architecture(network.config.architecture)
    names = {**family.names, **_own_names(network)}
    tensors = named_tensors(network, network.config, names, family.prefixes[0])
    own = {
        "labels": network.labels,
        "narrow": network.narrow,
        "exits": len(network.branches) > 1,
    }
    with whole_folder(folder) as partial:
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        config = {**fields, "tie_word_embeddings": True, _KEY: own}
        config.pop("quantization_config", None)  # of what it went on from
        text = json.dumps(config, indent=2)
        (partial / "config.json").write_text(text + "\n", encoding="utf-8")
        copy_tokenizer(tokenizer_folder, partial)


def is_classifier(folder: Path) -> bool:
    """Does the folder hold a classifier, or just a decoder?"""
    return _KEY in read_json(folder / "config.json")


def load_classifier(
    folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Classifier:
    """The classifier in a folder; CheckpointError if it holds none."""
    origin = folder / "config.json"
    found = read_json(origin).get(_KEY)
    if not isinstance(found, dict) or not isinstance(found.get("labels"), dict):
        raise CheckpointError(
            f"{origin} describes no classifier; train one with kind = classifier."
        )
    fields = Fields(found, f"{_KEY} in {origin}")
    labels = Fields(found["labels"], f"the labels in {origin}")
    config, source = open_folder(folder)
    with torch.device("meta"):
        network = Classifier(
            config,
            labels={name: labels.integer(name) for name in found["labels"]},
            narrow=fields.size("narrow"),
            exits=fields.flag("exits"),
        )
    names, prefix = name_map(config, source)
    fill(
        network,
        network.config,
        source,
        {**names, **_own_names(network)},
        prefix=prefix,
        owner="a classifier",
        dtype=dtype,
        device=device,
    )
    return network.eval()


def _own_names(network: Classifier) -> dict[str, str]:
    """The classifiers' parts keep their names."""
    stems = {name.rpartition(".")[0] for name, _ in network.named_parameters()}
    return {stem: stem for stem in stems if stem.startswith(("branches.", "scores."))}
