"""The compiled kernels against torch, on every instruction set of this machine."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.cache.test_int8_pool import rounded as rounded_to_int8
from tests.model.paged import PAGE, Cached, Pool
from tests.tiny import tiny_config

from anyorder.cache.int8_pool import Int8Pool
from anyorder.core.batch import KeyValuePool, dense_batch
from anyorder.model.backends import linear as linear_module
from anyorder.model.backends import native
from anyorder.model.backends.linear import Linear, linear
from anyorder.model.backends.native import attention as attention_module
from anyorder.model.backends.native import stack
from anyorder.model.config import Experts, LayerConfig, ModelConfig, Rope
from anyorder.model.transformer import Transformer

built = pytest.mark.skipif(
    native.library() is None and shutil.which("c++") is None,
    reason="without a C++ compiler there are no kernels; the package runs on torch alone",
)
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=range(1, len(native.LEVELS)), ids=native.LEVELS[1:])
def level(request: Any) -> Iterator[int]:
    """Each instruction set in turn; a set that the machine lacks is covered by the best it has."""
    kernels = native.library()
    assert kernels is not None, "the package was installed with a compiler, but has no kernels"
    yield kernels.anyorder_set_level(request.param)
    kernels.anyorder_set_level(len(native.LEVELS) - 1)


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


@built
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("width", "num_outputs"), [(64, 64), (577, 131), (31, 3), (1, 1), (32, 70)]
)
def test_linear_is_torchs(level: int, dtype: torch.dtype, width: int, num_outputs: int) -> None:
    weight_OI = draw(num_outputs, width, dtype=dtype, seed=1)
    bias_O = draw(num_outputs, dtype=dtype, seed=2)
    for num_rows in (1, 2, 3, 4, 5, 7, 32):
        x_NI = draw(num_rows, width, dtype=dtype)
        for bias in (None, bias_O):
            exact = F.linear(
                x_NI.double(), weight_OI.double(), None if bias is None else bias.double()
            )
            got = linear(x_NI, weight_OI, bias)
            # Rounding of the sums, and of the result to its type.
            bound = 1e-6 * width + torch.finfo(dtype).eps * exact.abs()
            assert got.dtype == dtype and ((got - exact).abs() <= bound).all()


@built
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rows_result_does_not_depend_on_its_company(level: int, dtype: torch.dtype) -> None:
    weight_OI = draw(515, 200, dtype=dtype, seed=1)
    x_NI = draw(300, 200, dtype=dtype)
    together = linear(x_NI, weight_OI)
    for first, count in [(0, 1), (3, 2), (5, 3), (7, 4), (8, 9), (31, 1), (60, 80), (299, 1)]:
        rows = slice(first, first + count)
        assert torch.equal(linear(x_NI[rows], weight_OI), together[rows])
    torch.set_num_threads(2)
    assert torch.equal(linear(x_NI, weight_OI), together)
    torch.set_num_threads(1)


class Elsewhere(torch.Tensor):
    """Stands for tensors whose memory is not theirs alone (sharded, fake, functional ones)."""


@built
def test_what_the_kernel_cannot_read_goes_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    known = linear_module.multiply
    monkeypatch.setattr(
        linear_module, "multiply", lambda *given: (calls.append("native"), known(*given))[1]
    )
    weight_OI = draw(8, 6, dtype=torch.float32, seed=1)
    x_NI = draw(4, 6, dtype=torch.float32)
    wide = draw(4, 12, dtype=torch.float32)
    for x, weight, by in [
        (x_NI, weight_OI, True),
        (wide[:, 3:9], weight_OI, True),  # rows apart
        (wide[:, ::2], weight_OI, False),  # values apart
        (x_NI, draw(6, 8, dtype=torch.float32).T, False),
        (x_NI.double(), weight_OI.double(), False),
        (x_NI[:0], weight_OI, False),
        (x_NI.as_subclass(Elsewhere), weight_OI, False),
        (x_NI, weight_OI.as_subclass(Elsewhere), False),
        (draw(129, 6, dtype=torch.float32), weight_OI, True),
        (x_NI.view(2, 2, 6), weight_OI, False),
        (x_NI, weight_OI.clone().requires_grad_(), False),
    ]:
        calls.clear()
        torch.testing.assert_close(linear(x, weight), F.linear(x, weight))
        assert bool(calls) == by
    trained = Linear(6, 8)
    trained(x_NI).sum().backward()
    assert trained.weight.grad is not None
    with torch.no_grad():
        calls.clear()
        trained(x_NI)
        assert calls


# ------------------------------------------------------------------------------------ whole layers
def config(**changes: Any) -> ModelConfig:
    """Three layers of the smallest size that the kernels take."""
    rope = Rope(width=32)
    layer = LayerConfig(rope=rope, attention_scale=32**-0.5)
    layers = (layer, dataclasses.replace(layer, window=5), dataclasses.replace(layer, rope=None))
    sizes = {"width": 48, "head_width": 32, "mlp_width": 96, "layers": layers}
    return tiny_config(**{**sizes, **changes})


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": {"qkv_bias": True, "output_bias": True, "mlp_bias": True},
    "query and key norms": {"qk_norm": "head"},
    "gelu": {"activation": "gelu_tanh"},
    "a key head for each": {"num_kv_heads": 4},
    "part of a head turned": {
        "layers": (LayerConfig(rope=Rope(width=16), attention_scale=0.2),) * 2
    },
    "two rotations": {
        "layers": (
            LayerConfig(rope=Rope(width=32), attention_scale=0.2),
            LayerConfig(rope=Rope(width=32, base=500.0), attention_scale=0.2),
        )
    },
}
PIECES = [
    [(0, 5)],
    [(1, 1), (2, 3)],  # a fresh sequence among others
    [(0, 1), (1, 1), (2, 1)],
    [(0, 4), (1, 4), (2, 2)],
    [(0, 1)],
]
"""Passes over three sequences: which runs how many tokens."""


def network(dtype: torch.dtype, **changes: Any) -> Transformer:
    # Weights as of a trained model: with larger ones every rounding is blown up layer by layer.
    return Transformer.random(config(**changes), seed=0, spread=0.1, dtype=dtype)


def on_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers run on torch from here on; products of matrices still use the kernels."""
    monkeypatch.setattr(stack, "MOST_ROWS", {})
    monkeypatch.setattr(attention_module, "MOST_ROWS", {})


@torch.no_grad()
def logits(model: Transformer, pool: KeyValuePool | None = None) -> list[torch.Tensor]:
    cached = Cached(model, 3, 24, pool=pool)
    generator = torch.Generator().manual_seed(0)
    found = []
    for pieces in PIECES:
        drawn = [(s, torch.randint(1, 61, (n,), generator=generator)) for s, n in pieces]
        found += cached.run(drawn)
    return found


@built
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.bfloat16, 0.06)])
def test_layers_are_torchs(
    level: int, kind: str, dtype: torch.dtype, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(dtype, **KINDS[kind])
    runs: list[int] = []
    known = stack.LayerStack.run
    monkeypatch.setattr(stack.LayerStack, "run", lambda *given: (runs.append(1), known(*given))[1])
    native_NV = torch.cat(logits(model))
    assert len(runs) == len(PIECES)
    on_torch(monkeypatch)
    plain_NV = torch.cat(logits(model))
    assert len(runs) == len(PIECES)
    scale = plain_NV.std()
    assert (native_NV - plain_NV).abs().max() < bound * scale
    # In bfloat16 both are as far from the exact result.
    exact_NV = torch.cat(logits(copy.deepcopy(model).double()))
    assert (native_NV - exact_NV).abs().mean() <= 1.3 * (plain_NV - exact_NV).abs().mean() + 1e-6


@built
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_run_together_and_alone_are_equal_bit_by_bit(level: int, dtype: torch.dtype) -> None:
    model = network(dtype)
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(1, 61, (10,), generator=generator) for _ in range(3)]
    with torch.no_grad():
        together = Cached(model, 3, 24).run(list(enumerate(ids)))
        for sequence, tokens in enumerate(ids):
            alone = Cached(model, 3, 24)
            parts = [alone.run([(sequence, part)])[0] for part in tokens.split([1, 4, 3, 2])]
            assert torch.equal(torch.cat(parts), together[sequence])


@built
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rounded", [False, True])
def test_a_long_prompt_is_that_of_its_parts_bit_by_bit(
    level: int, dtype: torch.dtype, rounded: bool
) -> None:
    """Over more rows than a core's cache holds, and more keys than a page has."""
    model = network(dtype)
    generator = torch.Generator().manual_seed(2)
    ids = [torch.randint(1, 61, (length,), generator=generator) for length in (150, 37)]

    def cached(**how: Any) -> Cached:
        return Cached(model, 2, 160, pool=int8_pool(model) if rounded else None, **how)

    with torch.no_grad():
        together = cached().run(list(enumerate(ids)))
        alone = cached()
        parts = [alone.run([(0, part)])[0] for part in ids[0].split([1, 63, 70, 1, 15])]
        masked = cached(masks=True).run(list(enumerate(ids)))
    assert torch.equal(torch.cat(parts), together[0])
    assert torch.equal(torch.cat(masked), torch.cat(together))


@built
@pytest.mark.parametrize("visible", [None, "both ways", "blocks"])
def test_fresh_sequences_read_nothing_from_the_pool(
    level: int, visible: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(torch.float32)
    tokens_BT = torch.randint(1, 61, (2, 9), generator=torch.Generator().manual_seed(2))
    block = torch.arange(9) // 4
    masks = {"both ways": torch.ones(9, 9).bool(), "blocks": block[:, None] >= block}
    seen = None if visible is None else masks[visible].repeat(2, 1, 1)
    batch = dataclasses.replace(dense_batch(tokens_BT, seen), slots_N=torch.arange(3, 21))
    with torch.no_grad():
        fresh = model.hidden(batch, Pool(model, 6))
        on_torch(monkeypatch)
        plain = model.hidden(batch, Pool(model, 6))
    torch.testing.assert_close(fresh, plain, atol=1e-4, rtol=0)


def int8_pool(model: Transformer, num_pages: int = 120) -> Int8Pool:
    pool = Int8Pool(
        model.cache_shapes,
        num_pages=num_pages,
        page_size=PAGE,
        dtype=model.dtype,
        device=torch.device("cpu"),
    )
    for tensor in pool.tensors():  # large and finite, as in `paged.Pool`: an engine clears pages
        tensor.fill_(100)
    return pool


class RoundingPool(Pool):
    """A pool that keeps what an int8 one would read."""

    def write(self, layer, slots_N, keys_NGD, values_NGD):
        rounded = (rounded_to_int8(new.float()).to(new) for new in (keys_NGD, values_NGD))
        return super().write(layer, slots_N, *rounded)


@built
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.bfloat16, 0.06)])
def test_int8_pages_are_read_as_torch_reads_them(
    level: int, dtype: torch.dtype, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(dtype, qk_norm="head")
    with torch.no_grad():
        native = int8_pool(model)
        native_NV = torch.cat(logits(model, native))
        on_torch(monkeypatch)
        plain = int8_pool(model)
        plain_NV = torch.cat(logits(model, plain))
        twin_NV = torch.cat(logits(model, RoundingPool(model, 120)))
        exact_NV = torch.cat(logits(model))
    scale = plain_NV.std()
    assert torch.equal(plain_NV, twin_NV)
    # A key that is rounded the other way differs by a 127th of its head: few do.
    assert (native_NV - plain_NV).abs().max() < (bound + 0.01) * scale
    assert (native_NV - plain_NV).abs().mean() < 0.2 * (exact_NV - plain_NV).abs().mean() + (
        0.0 if dtype == torch.float32 else bound / 4 * scale
    )


@built
def test_int8_pages_hold_what_torch_would_put_there(level: int) -> None:
    """From equal keys, bit by bit: one layer's, which no attention precedes."""
    model = network(torch.float32, layers=(config().layers[2],))
    tokens_BT = torch.randint(1, 61, (1, 9), generator=torch.Generator().manual_seed(2))
    batch = dataclasses.replace(dense_batch(tokens_BT), slots_N=torch.arange(3, 12))
    exact, int8 = Pool(model, 3), int8_pool(model, 3)
    with torch.no_grad():
        model.hidden(batch, exact)
        model.hidden(batch, int8)
    for found, kept in zip(int8.read(0, torch.arange(3)[None]), exact.pages(0), strict=True):
        assert torch.equal(found[0, 3:12], rounded_to_int8(kept.flatten(0, 1)[3:12]))


@built
def test_threads_do_not_change_a_bit(level: int) -> None:
    model = network(torch.float32)
    one = torch.cat(logits(model))
    torch.set_num_threads(4)
    four = torch.cat(logits(model))
    torch.set_num_threads(1)
    assert torch.equal(one, four)


@built
def test_weights_that_move_are_found() -> None:
    model = network(torch.float32)
    before = torch.cat(logits(model))
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.data = parameter.data * 1.01
    changed = torch.cat(logits(other))
    assert not torch.equal(changed, before)
    assert torch.equal(torch.cat(logits(model)), before)
    for name, parameter in model.named_parameters():
        module, _, attribute = name.rpartition(".")
        copied = torch.nn.Parameter(parameter.detach().clone(), requires_grad=False)
        setattr(other.get_submodule(module), attribute, copied)
    assert torch.equal(torch.cat(logits(other)), before)


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "layer"},
        {"norm_placement": "around"},
        {"parallel_residual": True},
        {"gated": False},
        {"activation": "relu", "gated": False},
        {"qk_norm": "full"},
        {"clip_qkv": 4.0},
        {"alibi": True},
        {"head_width": 8, "layers": (LayerConfig(rope=Rope(width=8), attention_scale=0.3),)},
        {"mlp_width": 40},
        {
            "layers": (
                LayerConfig(
                    attention_scale=0.2,
                    experts=Experts(num=4, per_token=2, width=32, normalize=True),
                ),
            )
        },
    ],
)
def test_other_families_run_on_torch(changes: dict[str, Any]) -> None:
    assert stack.LayerStack.supports(config())
    assert not stack.LayerStack.supports(config(**changes))


def test_layers_with_further_weights_run_on_torch() -> None:
    model = network(torch.float32)
    model.layers[1].adapter = torch.nn.Linear(2, 2)
    with torch.no_grad():
        logits(model)
        assert model._stack is not None and not model._stack._supported


def test_without_kernels_everything_runs_on_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = torch.cat(logits(network(torch.float32)))
    monkeypatch.setattr(stack, "level", lambda: 0)
    monkeypatch.setattr(attention_module, "library", lambda: None)
    monkeypatch.setattr(linear_module, "library", lambda: None)
    torch.testing.assert_close(torch.cat(logits(network(torch.float32))), expected)
