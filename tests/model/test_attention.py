"""Attention with what the parity tests do not reach: any visibility, gradients, mask sharing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.model.paged import Cached, Pool

from anyorder.core.batch import AttentionGroup, dense_batch
from anyorder.model.attention import alibi_slopes
from anyorder.model.backends.sdpa import Pattern, attend
from anyorder.model.config import LayerConfig, ModelConfig, Rope
from anyorder.model.transformer import Transformer

HEADS, KV_HEADS, WIDTH = 4, 2, 8
CONFIG = ModelConfig(
    architecture="llama",
    vocabulary_size=40,
    width=32,
    context_length=64,
    layers=(LayerConfig(rope=Rope(width=WIDTH), attention_scale=WIDTH**-0.5),) * 2,
    num_heads=HEADS,
    num_kv_heads=KV_HEADS,
    head_width=WIDTH,
    mlp_width=48,
    activation="silu",
    gated=True,
    norm="rms",
    norm_epsilon=1e-5,
)


def naive(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    group: AttentionGroup,
    pattern: Pattern,
) -> torch.Tensor:
    """The definition, one request, head and query at a time."""
    num_queries, num_keys = group.num_queries, group.key_positions_RK.shape[1]
    out = torch.zeros(len(queries), HEADS, WIDTH, dtype=queries.dtype)
    for row in range(len(queries)):
        request, query = divmod(row, num_queries)
        for head in range(HEADS):
            scores = torch.full((num_keys,), -torch.inf, dtype=queries.dtype)
            for key in range(num_keys):
                if group.visible_RQK is None:
                    visible = key <= query
                else:
                    visible = bool(group.visible_RQK.expand(len(keys), -1, -1)[request, query, key])
                distance = int(
                    group.query_positions_RQ[request, query] - group.key_positions_RK[request, key]
                )
                if visible and (pattern.window is None or distance < pattern.window):
                    product = queries[row, head] @ keys[request, key, head // (HEADS // KV_HEADS)]
                    scores[key] = product * pattern.scale
                    if pattern.slopes is not None:
                        scores[key] -= pattern.slopes[head] * distance
            out[row, head] = scores.softmax(0) @ values[request, :, head // (HEADS // KV_HEADS)]
    return out.flatten(1)


def fresh(visible: str, num_queries: int, generator: torch.Generator) -> AttentionGroup:
    """New tokens of two requests; each sees itself, and as `visible` says."""
    visibles = {
        "causal": None,
        "all": torch.ones(1, num_queries, num_queries, dtype=torch.bool),
        "scattered": torch.rand(2, num_queries, num_queries, generator=generator) < 0.5,
    }
    seen_RQK = visibles[visible]
    if seen_RQK is not None:
        seen_RQK |= torch.eye(num_queries, dtype=torch.bool)
    return dense_batch(torch.zeros(2, num_queries, dtype=torch.long), seen_RQK).groups[0]


@pytest.mark.parametrize("window", [None, 3, 4, 5])
@pytest.mark.parametrize("slopes", [None, alibi_slopes(HEADS)])
@pytest.mark.parametrize("num_queries", [1, 5])
@pytest.mark.parametrize("visible", ["causal", "all", "scattered"])
def test_attend_by_definition(
    window: int | None, slopes: tuple[float, ...] | None, num_queries: int, visible: str
) -> None:
    """Fresh tokens of two requests, in every combination of pattern and visibility."""
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (
        torch.randn(2 * num_queries, heads, WIDTH, generator=generator, dtype=torch.float64)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    group = fresh(visible, num_queries, generator)
    pattern = Pattern(scale=0.3, window=window, slopes=slopes)
    out = attend(queries, keys, values, group, None, 0, pattern)
    shape = (2, num_queries, KV_HEADS, WIDTH)
    expected = naive(queries, keys.view(shape), values.view(shape), group, pattern)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("slopes", [None, alibi_slopes(HEADS)])
def test_one_query_over_pages(slopes: tuple[float, ...] | None) -> None:
    """Heads that share a key head are folded together for one query; a window and ALiBi apply."""
    network = Transformer.random(CONFIG, seed=0, dtype=torch.float64)
    pool = Pool(network, num_pages=6)
    for layer in pool._layers:
        layer.normal_(generator=torch.Generator().manual_seed(1))
    pages = torch.tensor([[3, 0], [5, 2]])
    keys_RK = torch.arange(8).expand(2, -1)
    positions_RQ = torch.tensor([[6], [4]])
    group = AttentionGroup(
        first_row=0,
        num_requests=2,
        num_queries=1,
        pages_RP=pages,
        query_positions_RQ=positions_RQ,
        key_positions_RK=keys_RK,
        visible_RQK=keys_RK[:, None] <= positions_RQ[:, :, None],
    )
    queries = torch.randn(2, HEADS, WIDTH, dtype=torch.float64)
    new = torch.zeros(2, KV_HEADS, WIDTH, dtype=torch.float64)
    pattern = Pattern(scale=0.3, window=4, slopes=slopes)
    out = attend(queries, new, new, group, pool, 1, pattern)
    torch.testing.assert_close(
        out, naive(queries, *pool.read(1, pages), group, pattern), atol=1e-6, rtol=0
    )


def test_masks_are_made_once_per_kind_of_layer() -> None:
    local = replace(CONFIG.layers[0], window=3)
    config = replace(CONFIG, layers=(local, CONFIG.layers[0]) * 3)
    batch = dense_batch(torch.arange(20).view(2, 10))
    Transformer.random(config, seed=0).hidden(batch)
    assert len(batch.groups[0].masks) == 2
    assert list(batch.groups[0].masks.values()).count(None) == 1, "plain causal attention has none"


@torch.inference_mode()
def test_dense_batches_take_any_visibility() -> None:
    """A lower triangle given as a mask is causal; two-way blocks see what comes later."""
    network = Transformer.random(CONFIG, seed=0)
    ids = torch.arange(12).view(2, 6)
    causal = network.hidden(dense_batch(ids))
    triangle = torch.ones(1, 6, 6, dtype=torch.bool).tril()
    torch.testing.assert_close(network.hidden(dense_batch(ids, triangle)), causal)
    triangle[0, :3, :3] = True
    both = network.hidden(dense_batch(ids, triangle))
    assert not torch.allclose(both[0], causal[0]), "the first token now sees the second"
    changed = ids.clone()
    changed[:, 2] += 1
    assert not torch.allclose(network.hidden(dense_batch(changed, triangle))[0], both[0])


def test_alibi_slopes() -> None:
    """By the paper: 1/2^1 .. 1/2^8 for 8 heads; 12 heads add every second slope of 16."""
    assert alibi_slopes(8) == tuple(0.5**n for n in range(1, 9))
    assert alibi_slopes(12)[:8] == alibi_slopes(8)
    torch.testing.assert_close(alibi_slopes(12)[8:], tuple(0.5 ** (n + 0.5) for n in range(4)))


def test_gradients_reach_every_parameter() -> None:
    """Training runs the same code; a numerical derivative agrees."""
    network = Transformer.random(CONFIG, seed=0, dtype=torch.float64).requires_grad_(True)
    batch = dense_batch(torch.arange(12).view(2, 6))

    def loss() -> torch.Tensor:
        return network.logits(network.hidden(batch)).square().mean()

    loss().backward()
    for name, parameter in network.named_parameters():
        gradient = parameter.grad
        assert gradient is not None and gradient.abs().sum() > 0, name
        index = int(gradient.abs().argmax())
        with torch.no_grad():
            flat = parameter.view(-1)
            flat[index] += 1e-4
            above = loss()
            flat[index] -= 2e-4
            slope = (above - loss()) / 2e-4
            flat[index] += 1e-4
        # Logits are float32, which bounds how well a difference quotient can be seen.
        torch.testing.assert_close(slope.double(), gradient.view(-1)[index], rtol=2e-2, atol=1e-3)


def test_cached_equals_dense_exactly_in_shape_and_type() -> None:
    network = Transformer.random(CONFIG, seed=0)
    ids = torch.arange(10)
    cached = Cached(network, num_sequences=1, length=10)
    (logits,) = cached.run([(0, ids)])
    assert logits.dtype == torch.float32 and logits.shape == (10, 40)
    assert network.cache_shapes == [(KV_HEADS, WIDTH)] * 2
    assert (network.dtype, network.device.type) == (torch.float32, "cpu")


@pytest.mark.parametrize("slopes", [None, alibi_slopes(HEADS)])
@pytest.mark.parametrize("visible", ["causal", "all", "scattered"])
def test_bfloat16_learns_what_float64_would(
    visible: str, slopes: tuple[float, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products and a softmax in the place of torch's fused attention, on a CPU with gradients."""
    num_queries = 6
    generator = torch.Generator().manual_seed(0)
    exact = [
        torch.randn(2 * num_queries, heads, WIDTH, generator=generator)
        .bfloat16()
        .double()
        .requires_grad_()
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]
    rounded = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    wanted_NV = torch.randn(2 * num_queries, HEADS * WIDTH, generator=generator)
    pattern = Pattern(scale=WIDTH**-0.5, slopes=slopes)
    queries, keys, values = exact

    def group() -> AttentionGroup:
        """Anew for each type, as it keeps the masks of its pass."""
        return fresh(visible, num_queries, torch.Generator().manual_seed(1))

    shape = (2, num_queries, KV_HEADS, WIDTH)
    expected = naive(queries, keys.view(shape), values.view(shape), group(), pattern)
    (expected * wanted_NV).sum().backward()

    fused: list[object] = []
    plain = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *given, **named: fused.append(given) or plain(*given, **named),
    )
    found = attend(*rounded, group(), None, 0, pattern)
    (found.double() * wanted_NV).sum().backward()
    assert not fused
    torch.testing.assert_close(found.double(), expected, atol=0.03, rtol=0.03)
    for ours, theirs in zip(rounded, exact, strict=True):
        difference = (ours.grad.double() - theirs.grad).norm() / theirs.grad.norm()
        assert difference < 0.015
    with torch.no_grad():
        attend(*rounded, group(), None, 0, pattern)
    assert len(fused) == 1
