"""Weights of 8 and 4 bits: what they stand for, and products with them."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gguf import GGMLQuantizationType
from gguf import quants as gguf_quants
from tests.model.paged import Cached
from tests.model.test_native_kernels import PIECES, config, draw

from anyorder.core.errors import UserError
from anyorder.model.backends import native, quantized
from anyorder.model.backends.linear import Linear
from anyorder.model.backends.native import stack
from anyorder.model.backends.quantized import Bits, QuantizedEmbedding, QuantizedLinear
from anyorder.model.loaded import load
from anyorder.model.loading import load_network
from anyorder.model.saving import stored_tensors
from anyorder.model.transformer import Transformer

built = pytest.mark.skipif(
    native.level() < native.QUANTIZED_LEVEL
    and (shutil.which("c++") is None or not torch.cpu._is_avx512_supported()),
    reason="no compiler, or a processor without VNNI: quantised weights are expanded by torch",
)
BITS: list[Bits] = [8, 4]


@pytest.fixture(params=range(native.QUANTIZED_LEVEL, len(native.LEVELS)))
def level(request: Any) -> Iterator[int]:
    kernels = native.library()
    assert kernels is not None
    yield kernels.anyorder_set_level(request.param)
    kernels.anyorder_set_level(len(native.LEVELS) - 1)


def rounded_inputs(x_NI: torch.Tensor) -> torch.Tensor:
    """What the kernels make of inputs: 8 bits and a scale for each 32. In float32 as they do, so
    that ties (many in bfloat16) fall on the same side."""
    groups = x_NI.float().view(len(x_NI), -1, 32)
    largest = groups.abs().amax(-1, keepdim=True)
    # Scalar / tensor would be a product with a reciprocal in torch.
    units = (groups * (torch.full_like(largest, 127) / largest)).round()
    return (units.double() * (largest / 127).double()).view_as(x_NI)


# ----------------------------------------------------------------------------------------- weights
@pytest.mark.parametrize(("bits", "steps"), [(8, 127), (4, 15)])
def test_a_weight_is_off_by_half_a_step_at_most(bits: Bits, steps: int) -> None:
    weight = draw(24, 192, dtype=torch.float32)
    layer = QuantizedLinear(weight, None, bits)
    groups = weight.view(24, -1, 32)
    low, high = groups.aminmax(dim=-1)
    reach = groups.abs().amax(-1) if bits == 8 else high - low
    step = (reach / steps)[..., None]
    error = (layer.expanded(torch.float32).view_as(groups) - groups).abs()
    # float16 has 11 bits, for the scale and for the lowest value.
    slack = (groups.abs().amax(-1, keepdim=True) + reach[..., None]) * 2**-10
    assert (error <= step / 2 + slack).all()
    assert error.mean() > step.mean() / 8  # it is not simply the weights


@pytest.mark.parametrize("bits", BITS)
def test_weights_that_were_quantised_before_come_through(bits: Bits) -> None:
    """GGUF's Q4_1 and Q8_0 hold the same numbers."""
    once = QuantizedLinear(draw(24, 192, dtype=torch.float32), None, bits).expanded(torch.float32)
    again = QuantizedLinear(once, None, bits).expanded(torch.float32)
    # The scale is computed anew, from the ends of a group, and rounds to the same float16.
    assert torch.equal(once, again)


@pytest.mark.parametrize("bits", BITS)
def test_groups_without_spread(bits: Bits) -> None:
    weight = torch.zeros(4, 64)
    weight[1] = 0.5
    layer = QuantizedLinear(weight, None, bits)
    torch.testing.assert_close(layer.expanded(torch.float32), weight, rtol=1e-3, atol=0)
    x = draw(2, 64, dtype=torch.float32)
    torch.testing.assert_close(layer(x), F.linear(x, weight), rtol=0.02, atol=0.02)
    assert layer(torch.zeros(1, 64)).abs().max() == 0


@built
@pytest.mark.parametrize("bits", BITS)
def test_kernels_round_weights_as_torch_does(level: int, bits: Bits) -> None:
    weight_OI = draw(37, 192, dtype=torch.float32)
    weight_OI[3], weight_OI[4, :40] = 0, 0.5
    layer = QuantizedLinear(weight_OI, None, bits)
    assert torch.equal(layer.packed, quantized._quantize(weight_OI, bits))


@built
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("kind", "within"), [("Q4_0", (4,)), ("Q4_1", (4,)), ("Q8_0", (8,)), ("F32", ())]
)
def test_rows_are_taken_as_a_file_has_them(
    level: int, bits: Bits, kind: str, within: tuple[Bits, ...]
) -> None:
    """Formats written and read by the gguf library; without loss where the bits are the same."""
    weight_OI = draw(37, 192, dtype=torch.float32)
    number = GGMLQuantizationType[kind]
    rows_OB = torch.from_numpy(gguf_quants.quantize(weight_OI.numpy(), number)).view(torch.uint8)
    stands_for = torch.from_numpy(gguf_quants.dequantize(rows_OB.numpy(), number)).view(37, 192)
    layer = QuantizedLinear(torch.empty(37, 192, device="meta"), None, bits)
    layer.put_stored(0, rows_OB[:21], kind)
    layer.put_stored(21, rows_OB[21:], kind)
    if bits in within:
        assert torch.equal(layer.expanded(torch.float32), stands_for)
    else:
        assert torch.equal(layer.packed, QuantizedLinear(stands_for, None, bits).packed)


@built
@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_threads_share_a_file_s_rows(level: int, kind: str) -> None:
    """As many as it takes for several pieces; the last is not whole."""
    weight_OI = draw(301, 192, dtype=torch.float32)
    number = GGMLQuantizationType[kind]
    rows_OB = torch.from_numpy(gguf_quants.quantize(weight_OI.numpy(), number)).view(torch.uint8)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        layers = [QuantizedLinear(torch.empty(301, 192, device="meta"), None, b) for b in BITS]
        for layer in layers:
            layer.put_stored(0, rows_OB, kind)
        numbers = torch.empty(301, 192, dtype=torch.bfloat16)
        native.expand(rows_OB.flatten(), kind, numbers)
        found.append([*(layer.packed for layer in layers), numbers])
    torch.set_num_threads(1)
    assert all(map(torch.equal, *found))


@built
def test_rows_of_8_bits_by_kernel_and_by_torch(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = QuantizedLinear(draw(37, 192, dtype=torch.float32), None, 8)
    tokens = torch.tensor([[36, 0, 5], [5, 17, 31]])
    for dtype in (torch.float32, torch.bfloat16):
        rows = QuantizedEmbedding(layer, dtype)(tokens)
        assert rows.shape == (2, 3, 192) and rows.dtype == dtype
        with monkeypatch.context() as patch:
            patch.setattr(quantized, "level", lambda: 0)
            assert torch.equal(rows, layer.expanded(dtype)[tokens])


# ---------------------------------------------------------------------------------------- products
@built
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "num_outputs"), [(64, 1), (128, 7), (576, 70), (1088, 131)])
def test_products_are_those_of_the_rounded_inputs(
    level: int, bits: Bits, dtype: torch.dtype, width: int, num_outputs: int
) -> None:
    weight_OI = draw(num_outputs, width, dtype=torch.float32, seed=1)
    bias_O = draw(num_outputs, dtype=dtype, seed=2)
    layer = QuantizedLinear(weight_OI, bias_O, bits)
    for num_rows in (*range(1, 15), 33):  # every tile
        x_NI = draw(num_rows, width, dtype=dtype)
        exact = F.linear(rounded_inputs(x_NI), layer.expanded(torch.float64), bias_O.double())
        got = layer(x_NI)
        # Sums in float; a product of two scales; and the result's own rounding.
        bound = 2e-6 * width + torch.finfo(dtype).eps * exact.abs()
        assert got.dtype == dtype and ((got - exact).abs() <= bound).all()


@built
@pytest.mark.parametrize("bits", BITS)
def test_rows_are_independent_and_threads_change_nothing(level: int, bits: Bits) -> None:
    layer = QuantizedLinear(draw(515, 320, dtype=torch.float32, seed=1), None, bits)
    x_NI = draw(140, 320, dtype=torch.float32)
    together = layer(x_NI)
    for first, count in [(0, 1), (3, 2), (5, 3), (7, 4), (8, 9), (39, 1), (60, 80)]:
        assert torch.equal(layer(x_NI[first : first + count]), together[first : first + count])
    for count in range(1, 20):  # every tile
        assert torch.equal(layer(x_NI[:count]), together[:count])
    for threads in (2, 3, 12):  # more than there are pieces
        torch.set_num_threads(threads)
        assert torch.equal(layer(x_NI), together)
    torch.set_num_threads(1)


@pytest.mark.parametrize("bits", BITS)
def test_without_kernels_weights_are_expanded(bits: Bits, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = QuantizedLinear(draw(7, 64, dtype=torch.float32), None, bits)
    monkeypatch.setattr(quantized, "level", lambda: 0)
    x_NI = draw(3, 64, dtype=torch.float32)
    assert torch.equal(layer(x_NI), F.linear(x_NI, layer.expanded(torch.float32)))


# ------------------------------------------------------------------------------------ whole models
def network(dtype: torch.dtype = torch.float32) -> Transformer:
    sizes = {"width": 64, "head_width": 32, "mlp_width": 128}
    return Transformer.random(config(**sizes), seed=0, spread=0.1, dtype=dtype)


@torch.no_grad()
def logits(model: Transformer) -> torch.Tensor:
    cached = Cached(model, 3, 24)
    generator = torch.Generator().manual_seed(0)
    found = []
    for pieces in PIECES:
        drawn = [(s, torch.randint(1, 61, (n,), generator=generator)) for s, n in pieces]
        found += cached.run(drawn)
    return torch.cat(found)


@built
@pytest.mark.parametrize(("bits", "bound"), [(8, 0.03), (4, 0.3)])
def test_layers_with_quantised_weights(
    level: int, bits: Bits, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = network()
    model = copy.deepcopy(plain)
    model.quantize(bits)
    runs: list[int] = []
    known = stack.LayerStack.run
    monkeypatch.setattr(stack.LayerStack, "run", lambda *given: (runs.append(1), known(*given))[1])
    whole = logits(model)
    assert len(runs) == len(PIECES)
    monkeypatch.setattr(stack, "MOST_ROWS", {})
    by_module = logits(model)
    assert len(runs) == len(PIECES)
    spread = whole.std()
    # An input that is rounded the other way is off by a step of its group.
    assert (whole - by_module).abs().mean() < 0.002 * spread
    error = (whole - logits(plain)).abs().mean()
    assert 0 < error < bound * spread


@pytest.mark.parametrize("bits", BITS)
def test_which_layers_are_quantised(bits: Bits) -> None:
    model = network()
    model.quantize(bits)
    linears = [module for module in model.modules() if isinstance(module, Linear)]
    replaced = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    assert not linears and len(replaced) == 4 * 3 + 1
    assert model.quantized_head is not None and model.quantized_head.bits == 8
    odd = Transformer.random(config(), seed=0)  # its width of 48 fits no register
    odd.quantize(bits)
    assert odd.quantized_head is None
    assert not any(m.width % 64 for m in odd.modules() if isinstance(m, QuantizedLinear))
    assert any(isinstance(module, Linear) for module in odd.modules())


class InMemory:
    """`naming.TensorSource` over a network's own tensors."""

    format = "safetensors"

    def __init__(self, network: Transformer) -> None:
        self.tensors = stored_tensors(network)

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def read(self, name: str, out: torch.Tensor | None = None) -> torch.Tensor:
        return self.tensors[name] if out is None else out.copy_(self.tensors[name].view_as(out))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_network_is_quantised_while_it_is_loaded(bits: Bits, tied: bool) -> None:
    """Matrix by matrix and part by part, with the same result."""
    sizes = {"width": 64, "head_width": 32, "mlp_width": 128, "vocabulary_size": 1061}
    settings = config(**sizes, tied_embeddings=tied)
    whole = Transformer.random(settings, seed=0)
    source = InMemory(whole)
    loaded = load_network(settings, source, dtype=torch.float32, bits=bits)
    assert not any(isinstance(module, Linear) for module in loaded.modules())
    whole.quantize(bits)
    found = loaded.state_dict()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(found[name], tensor), name
    head = loaded.quantized_head if tied else loaded.head
    assert isinstance(head, QuantizedLinear)
    weight_VW = source.read("model.embed_tokens.weight" if tied else "lm_head.weight")
    step = weight_VW.view(1061, -1, 32).abs().amax(-1) if head.bits == 8 else 2.0
    bound = torch.as_tensor(step / (127 if head.bits == 8 else 15)).max()
    assert (head.expanded(torch.float32) - weight_VW).abs().max() < bound


class Grouped(InMemory):
    """The same as the rows of a file: matrices in groups of 32."""

    def __init__(self, network: Transformer, kind: str) -> None:
        super().__init__(network)
        self.kind = kind
        self.rows: dict[str, torch.Tensor] = {}
        self.released: list[str] = []
        for name, tensor in self.tensors.items():
            if tensor.dim() < 2:
                continue
            own = GGMLQuantizationType["Q8_0" if "embed" in name else kind]
            self.rows[name] = torch.from_numpy(gguf_quants.quantize(tensor.numpy(), own))
            stands_for = gguf_quants.dequantize(self.rows[name].numpy(), own)
            self.tensors[name] = torch.from_numpy(stands_for).view_as(tensor)

    def read(self, name: str, out: torch.Tensor | None = None) -> torch.Tensor:
        assert name not in self.rows, "matrices need no expanding"
        return super().read(name, out)

    def file_format(self, name: str) -> str:
        return "F32" if name not in self.rows else "Q8_0" if "embed" in name else self.kind

    def stored(self, name: str) -> torch.Tensor:
        return self.rows[name]

    def release(self, name: str) -> None:
        self.released.append(name)


@built
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_a_network_takes_rows_as_its_file_has_them(bits: Bits, kind: str) -> None:
    """Fused matrices part by part; tied embeddings are looked up in the head."""
    settings = config(
        width=64, head_width=32, mlp_width=128, vocabulary_size=1061, tied_embeddings=True
    )
    source = Grouped(Transformer.random(settings, seed=0), kind)
    loaded = load_network(settings, source, dtype=torch.float32, bits=bits)
    assert sorted(source.released) == sorted(source.rows)
    plain = InMemory(Transformer.random(settings, seed=0))
    plain.tensors = source.tensors
    expected = load_network(settings, plain, dtype=torch.float32, bits=bits)
    assert isinstance(loaded.embedding, QuantizedEmbedding)
    assert torch.equal(loaded.embedding.weight, expected.embedding.weight)
    assert loaded.dtype == torch.float32 and loaded.device.type == "cpu"
    found = dict(loaded.named_modules())
    for name, module in expected.named_modules():
        if isinstance(module, QuantizedLinear) and name != "quantized_head":
            weights = found[name].expanded(torch.float32)
            torch.testing.assert_close(weights, module.expanded(torch.float32), atol=1e-4, rtol=0)
    torch.testing.assert_close(logits(loaded), logits(expected), atol=0.02, rtol=0)


@pytest.mark.parametrize("quantize", ["int3", "8", ""])
def test_an_unknown_number_of_bits_is_refused(quantize: str) -> None:
    with pytest.raises(UserError, match="quantize must be one of int8, int4"):
        load("smollm2-135m-instruct", quantize=quantize)


def test_quantised_weights_are_for_cpus() -> None:
    with pytest.raises(UserError, match="is for CPUs, and the model is to run on meta"):
        load("smollm2-135m-instruct", quantize="int8", device="meta")
