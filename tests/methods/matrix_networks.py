"""The tiny networks that `matrix.py` tries methods on.

Those of each kind come in threes: one that says the same everywhere, "a" with probability 0.4, "b"
0.3, "c" 0.2 and "d" 0.1; a random one; and a random one behind an encoder.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from tests.methods.encoder_decoders import mask_filler
from tests.model.test_calm import SIZES
from tests.model.test_calm import fields as calm_fields
from tests.tiny import CONTEXT, tiny_config, tiny_encoder_decoder_config
from tests.training.runs import byte_tokenizer

from anyorder.core import lookup
from anyorder.core.batch import KeyValuePool, PackedBatch
from anyorder.core.method import Abilities, Method, TextRules
from anyorder.core.plans import PlanTokens
from anyorder.model.calm import calm_abilities, make_calm
from anyorder.model.calm_autoencoder import CalmAutoencoder, start
from anyorder.model.drafters.medusa import MedusaHeads, NetworkWithHeads
from anyorder.model.encoder_decoder import EncoderDecoder
from anyorder.model.loaded import LoadedModel
from anyorder.model.tokenizer import Tokenizer
from anyorder.model.transformer import Transformer

MASK, VOCABULARY, COUNTS = 257, 266, 6
TAGS = PlanTokens(topic=258, topic_end=259, span=260, span_end=261, sync=262, pad=263,
                  digits={264: "1", 265: "2"})  # fmt: skip
WORDS = {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}
Kind = Literal["known", "random", "encoder"]
"""Which of the three."""


@functools.cache
def tokenizer() -> Tokenizer:
    """One of bytes."""
    with tempfile.TemporaryDirectory() as folder:
        return Tokenizer.from_folder(byte_tokenizer(Path(folder)))


def token(letter: str) -> int:
    """Its id."""
    (found,) = tokenizer().encode(letter, add_special=False)
    return found


def abilities(**changes: Any) -> Abilities:
    """All that a decoder may be able to do."""
    return Abilities(
        **{
            "name": "tiny",
            "vocabulary_size": VOCABULARY,
            "context_length": CONTEXT,
            "num_layers": 2,
            "attention": frozenset({"causal", "bidirectional"}),
            "mask_token": MASK,
            "num_heads": 2,
            "block_size": 5,
            "plan_tokens": TAGS,
            "num_insertions": COUNTS,
            **changes,
        }
    )


def heads(readout: torch.Tensor | None = None) -> MedusaHeads:
    """Two further prediction heads: random, or of one known readout."""
    made = MedusaHeads(num_heads=2, num_blocks=1, width=32, vocabulary=VOCABULARY).double()
    generator = torch.Generator().manual_seed(5)
    for name, parameter in made.requires_grad_(False).named_parameters():
        parameter.normal_(0.0, 0.2, generator=generator)
        if readout is not None:
            parameter.copy_(readout if parameter.shape == readout.shape else 0 * parameter)
        assert name
    return made


def letters() -> torch.Tensor:
    """Logits of what a network says that says the same everywhere."""
    logits_V = torch.full((VOCABULARY,), -60.0, dtype=torch.float64)
    for letter, probability in WORDS.items():
        logits_V[token(letter)] = math.log(probability)
    return logits_V


@functools.cache
def known() -> LoadedModel:
    """Says the same everywhere: all embeddings are equal, and no layer adds to them."""
    layers = tiny_config().layers[:1]
    config = tiny_config(
        vocabulary_size=VOCABULARY, tied_embeddings=False, layers=layers, insertion_classes=COUNTS
    )
    network = Transformer.random(config, seed=0, dtype=torch.float64)
    for name, parameter in network.named_parameters():
        parameter.fill_(1.0 if name.endswith("norm.weight") or "embedding" in name else 0.0)
    network.head.weight.copy_((letters() / config.width)[:, None].expand(-1, config.width))
    # Text is missing at its end alone, five tokens each time, and none is wrong.
    network.edit_head.insertion.weight[0, config.width :] = 1.0
    network.edit_head.insertion.bias[-1] = 5.0
    network.edit_head.deletion.bias[:] = -60.0
    further = heads(network.head.weight)
    return LoadedModel(
        network=NetworkWithHeads(network, further), abilities=abilities(), tokenizer=tokenizer()
    )


@functools.cache
def random(seed: int, *, spread: float = 0.2) -> LoadedModel:
    """A random network; the greater its weights' spread, the surer it is."""
    config = tiny_config(vocabulary_size=VOCABULARY, insertion_classes=COUNTS)
    network = Transformer.random(config, seed=seed, dtype=torch.float64, spread=spread)
    return LoadedModel(
        network=NetworkWithHeads(network, heads()), abilities=abilities(), tokenizer=tokenizer()
    )


@functools.cache
def encoder_decoder() -> LoadedModel:
    """A random encoder-decoder that masks, plans and predicts ahead like the others."""
    rules = TextRules(start_tokens=(1,))
    config = tiny_encoder_decoder_config(
        vocabulary_size=VOCABULARY, text_rules=rules, insertion_classes=COUNTS
    )
    network = EncoderDecoder.random(config, seed=0, dtype=torch.float64)
    for layer in network.layers:  # else a tied head repeats the last token, whatever the source
        layer.cross.out.weight.mul_(6.0)
    return LoadedModel(
        network=NetworkWithHeads(network, heads()),
        abilities=abilities(source_length=CONTEXT, text_rules=rules),
        tokenizer=tokenizer(),
    )


@functools.cache
def patches() -> LoadedModel:
    """A random network that draws patches."""
    sizes = dataclasses.replace(SIZES, vocab_size=VOCABULARY, fill_token_id=256)
    coder = CalmAutoencoder(sizes).requires_grad_(False)
    start(coder.named_parameters(), seed=1)
    own = calm_fields(vocab_size=VOCABULARY, autoencoder=sizes.fields())
    network = make_calm(own, coder, seed=2).requires_grad_(False)
    torch.nn.init.normal_(network.head.out.weight, generator=torch.Generator().manual_seed(3))
    found = calm_abilities("tiny calm", network.eval().double(), None)
    found = dataclasses.replace(found, end_tokens=frozenset())
    return LoadedModel(network=network, abilities=found, tokenizer=tokenizer())


class KnownPlaces(EncoderDecoder):
    """A decoder that writes in one pass: every other place says the same, and those in between,
    with no links, say nothing, so that no two tokens merge. Links lead from place to place."""

    def hidden(self, batch: PackedBatch, pool: KeyValuePool | None = None) -> torch.Tensor:
        silent_N = torch.zeros_like(batch.positions_N)
        if not self.config.link_heads:
            silent_N = 1 - batch.positions_N % 2
        return torch.eye(self.config.width, dtype=torch.float64)[silent_N]

    def links(self, hidden_DLW: torch.Tensor, num_vertices_D: torch.Tensor) -> torch.Tensor:
        num_graphs, size = hidden_DLW.shape[:2]
        onward_LL = torch.full((size, size), -torch.inf)
        onward_LL.diagonal(1).fill_(0.0)
        return onward_LL.expand(num_graphs, -1, -1)


@functools.cache
def one_pass(*, linked: bool, known: bool) -> LoadedModel:
    """An encoder-decoder that writes in one pass: a graph of vertices, or a row of places."""
    rules = TextRules(start_tokens=(1,))
    config = tiny_encoder_decoder_config(
        vocabulary_size=VOCABULARY,
        text_rules=rules,
        vertices_per_token=5 if known else 2,
        link_heads=4 if linked else 0,
        tied_embeddings=False,
    )
    cls = KnownPlaces if known else EncoderDecoder
    model = mask_filler(config, cls, mask=MASK)
    network: Any = model.network
    if not linked:
        network.head.weight[MASK] *= 2.0  # blanks are common
    if known:
        network.head.weight.zero_()
        network.head.weight[:, 0] = letters()
        network.head.weight[:, 1] = torch.full((VOCABULARY,), -60.0).index_fill(
            0, torch.tensor(MASK), 0.0
        )
    return dataclasses.replace(model, tokenizer=tokenizer())


def network_for(method: str, kind: Kind = "known") -> LoadedModel | None:
    """What the method runs on, None if it is not here. Methods that need a network of their own
    get no other, but for a plain decoder behind an encoder, which they refuse."""
    cls: type[Method] = lookup.find("methods", method, kind="method")
    usual = {"known": known(), "random": random(0), "encoder": encoder_decoder()}
    groups: list[dict[Kind, LoadedModel]] = [
        usual,
        {"known": patches(), "random": patches(), "encoder": encoder_decoder()},
    ]
    for linked in (True, False):
        other = one_pass(linked=linked, known=False)
        first = one_pass(linked=linked, known=True)
        groups.append({"known": first, "random": other, "encoder": other})
    for networks in groups:
        if cls.needs.missing(networks["known"].abilities, ("target", "draft")) is None:
            return networks[kind]
    return None
