"""Encoder-decoders in training: cross-attention against torch's own, packed documents, lengths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tiny import tiny_config, tiny_encoder_decoder_config
from torch import nn

from anyorder.core.batch import CrossMemory, dense_batch
from anyorder.core.packing import document_positions, same_document
from anyorder.model.config import RelativePositions
from anyorder.model.encoder_decoder import EncoderDecoder
from anyorder.model.relative import buckets
from anyorder.model.transformer import Transformer


def network(**changes: Any) -> EncoderDecoder:
    config = tiny_encoder_decoder_config(**changes)
    return EncoderDecoder.random(config, seed=0, dtype=torch.float64)


def ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 60, shape, generator=torch.Generator().manual_seed(seed))


def encode(model: EncoderDecoder, sources_BS: torch.Tensor) -> torch.Tensor:
    length = sources_BS.shape[1]
    everything = torch.ones(1, length, length, dtype=torch.bool)
    states_NW = model.encode(dense_batch(sources_BS, everything))
    return states_NW.view(*sources_BS.shape, -1)


def test_cross_attention_is_torchs() -> None:
    """The branch alone, against torch.nn.MultiheadAttention with our weights."""
    model = network(num_kv_heads=4, qkv_bias=True, output_bias=True)
    cross: Any = model.layers[0].cross
    theirs = nn.MultiheadAttention(32, 4, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat((cross.q.weight, cross.kv.weight)))
        theirs.in_proj_bias.copy_(torch.cat((cross.q.bias, cross.kv.bias)))
        theirs.out_proj.weight.copy_(cross.out.weight)
        theirs.out_proj.bias.copy_(cross.out.bias)
    generator = torch.Generator().manual_seed(1)
    x_BTW, states_BSW = (
        torch.randn(3, length, 32, generator=generator, dtype=torch.float64) for length in (5, 7)
    )
    visible_BTS = torch.rand(3, 5, 7, generator=generator) < 0.5
    visible_BTS[..., 2] = True
    memory = CrossMemory(states_RSW=states_BSW, visible_RQS=visible_BTS)
    ours = cross(x_BTW.flatten(0, 1), dense_batch(ids(3, 5), memory=memory)).view(3, 5, -1)
    hidden = ~visible_BTS.repeat_interleave(4, 0)
    torch.testing.assert_close(ours, theirs(x_BTW, states_BSW, states_BSW, attn_mask=hidden)[0])


def test_a_token_that_sees_nothing_reads_the_mean() -> None:
    """Some kernels make NaN of a row whose scores are all minus infinity."""
    cross: Any = network().layers[0].cross
    x_BTW, states_BSW = (
        torch.randn(1, length, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        for length in (2, 7)
    )
    visible = torch.tensor([True, False])[None, :, None].expand(1, 2, 7)
    memory = CrossMemory(states_RSW=states_BSW, visible_RQS=visible)
    blind = cross(x_BTW.flatten(0, 1), dense_batch(ids(1, 2), memory=memory))[1]
    _, values = cross.keys_and_values(states_BSW)
    mean = values.mean(1).repeat_interleave(2, dim=1).flatten()
    torch.testing.assert_close(blind, cross.out(mean))


@pytest.mark.parametrize("placement", ["before", "after_residual"])
def test_the_order_of_a_layers_branches(placement: str) -> None:
    """torch's own decoder layer with our weights: self-attention, cross-attention, MLP."""
    model = network(
        num_kv_heads=4,
        qkv_bias=True,
        output_bias=True,
        norm_placement=placement,
        norm="layer",
        gated=False,
        mlp_bias=True,
        activation="gelu",
        layers=tiny_config(layers=(unrotated(),)).layers,
    )
    layer: Any = model.layers[0]
    first = placement == "before"
    theirs = nn.TransformerDecoderLayer(
        32, 4, 48, 0.0, "gelu", batch_first=True, norm_first=first, dtype=torch.float64
    ).eval()
    suffix = "norm" if first else "residual_norm"
    norms = [getattr(layer, f"{part}_{suffix}") for part in ("attention", "cross", "mlp")]
    pairs = zip((theirs.norm1, theirs.norm2, theirs.norm3), norms, strict=True)
    with torch.no_grad():
        for their_norm, norm in pairs:
            their_norm.load_state_dict(norm.state_dict())
        for their, weight, bias, out in (
            (
                theirs.self_attn,
                layer.attention.qkv.weight,
                layer.attention.qkv.bias,
                layer.attention.out,
            ),
            (
                theirs.multihead_attn,
                torch.cat((layer.cross.q.weight, layer.cross.kv.weight)),
                torch.cat((layer.cross.q.bias, layer.cross.kv.bias)),
                layer.cross.out,
            ),
        ):
            their.in_proj_weight.copy_(weight)
            their.in_proj_bias.copy_(bias)
            their.out_proj.load_state_dict(out.state_dict())
        theirs.linear1.load_state_dict(layer.mlp.up.state_dict())
        theirs.linear2.load_state_dict(layer.mlp.down.state_dict())
    x_BTW = torch.randn(2, 5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    states_BSW = encode(model, ids(2, 7))
    batch = dense_batch(ids(2, 5), memory=CrossMemory(states_RSW=states_BSW))
    ours = layer(x_BTW.flatten(0, 1), None, batch, None).view(2, 5, -1)
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    torch.testing.assert_close(ours, theirs(x_BTW, states_BSW, tgt_mask=causal))


def unrotated() -> Any:
    layer = tiny_config().layers[0]
    return type(layer)(attention_scale=layer.attention_scale)


def packed(model: EncoderDecoder, rows: list[list[tuple[int, int]]]) -> list[torch.Tensor]:
    """Logits of documents packed into rows; each document is the lengths of its two sides."""
    source_length = max(sum(source for source, _ in row) for row in rows) + 2
    target_length = max(sum(target for _, target in row) for row in rows) + 1
    sources, targets = torch.zeros(len(rows), source_length), torch.zeros(len(rows), target_length)
    source_of, target_of = sources.sub(1).long(), targets.sub(1).long()
    sources, targets = sources.long(), targets.long()
    places = []
    for row, documents in enumerate(rows):
        at = to = 0
        for number, (source, target) in enumerate(documents):
            sources[row, at : at + source] = ids(source, seed=100 * row + number)
            targets[row, to : to + target] = ids(target, seed=100 * row + number + 50)
            source_of[row, at : at + source] = target_of[row, to : to + target] = number
            places.append((row, slice(to, to + target)))
            at, to = at + source, to + target
    batch = dense_batch(sources, same_document(source_of), document_positions(source_of))
    states_BSW = model.encode(batch).view(*sources.shape, -1)
    memory = CrossMemory(
        states_RSW=states_BSW, visible_RQS=target_of[:, :, None] == source_of[:, None]
    )
    visible = same_document(target_of).tril()
    batch = dense_batch(targets, visible, document_positions(target_of), memory=memory)
    logits = model.logits(model.hidden(batch)).view(*targets.shape, -1)
    return [logits[row, place] for row, place in places]


@pytest.mark.parametrize("positions", ["relative", "sinusoidal", "learned", "rope"])
def test_documents_packed_into_rows_do_not_see_each_other(positions: str) -> None:
    changes: dict[str, Any] = {
        "relative": {
            "relative_positions": RelativePositions(
                num_buckets=8, max_distance=16, bidirectional=False
            )
        },
        "sinusoidal": {"sinusoidal_positions": True},
        "learned": {"learned_positions": 32},
        "rope": {},
    }[positions]
    if positions != "rope":
        changes["layers"] = (unrotated(),) * 2
    model = network(**changes)
    rows = [[(4, 3), (6, 5)], [(9, 2)]]
    together = packed(model, rows)
    alone = [
        model.logits(
            model.hidden(
                dense_batch(
                    ids(1, target, seed=100 * row + number + 50),
                    memory=CrossMemory(
                        states_RSW=encode(model, ids(1, source, seed=100 * row + number))
                    ),
                )
            )
        )
        for row, documents in enumerate(rows)
        for number, (source, target) in enumerate(documents)
    ]
    for ours, theirs in zip(together, alone, strict=True):
        assert theirs.std() > 0.1
        torch.testing.assert_close(ours, theirs)


def test_everything_gets_a_gradient_even_where_padding_sees_nothing() -> None:
    model = network(length_classes=9).requires_grad_(True)
    states_BSW = encode(model, ids(2, 6))
    visible = torch.ones(2, 5, 6, dtype=torch.bool)
    visible[1, 3:] = False
    memory = CrossMemory(states_RSW=states_BSW, visible_RQS=visible)
    logits = model.logits(model.hidden(dense_batch(ids(2, 5, seed=1), memory=memory)))
    lengths = model.length_logits(states_BSW[:, 0])
    assert lengths.shape == (2, 9) and lengths.dtype == torch.float32
    loss = logits.view(2, 5, -1)[:, :3].logsumexp(-1).sum() + lengths.logsumexp(-1).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_a_table_of_relative_positions_learns_though_it_was_used_without_gradients() -> None:
    """Masks are remembered for a pass; one made without gradients must not serve another."""
    positions = RelativePositions(num_buckets=8, max_distance=16, bidirectional=True)
    config = tiny_config(relative_positions=positions)
    model = Transformer.random(config, seed=0, dtype=torch.float64).requires_grad_(True)
    batch = dense_batch(ids(1, 6))
    with torch.no_grad():
        model.hidden(batch)
    model.hidden(batch).sum().backward()  # type: ignore[no-untyped-call]
    gradient = model.relative_bias.weight.grad
    assert gradient is not None and gradient.any()


def test_buckets_are_transformers() -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-300, 301)
    for both in (True, False):
        positions = RelativePositions(num_buckets=32, max_distance=128, bidirectional=both)
        theirs = T5Attention._relative_position_bucket(-distance, both, 32, 128)
        torch.testing.assert_close(buckets(positions, distance), theirs)


def test_encoding_refuses_a_causal_batch() -> None:
    with pytest.raises(AssertionError, match="who sees whom"):
        network().encode(dense_batch(ids(1, 4)))
