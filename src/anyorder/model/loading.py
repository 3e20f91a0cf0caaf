"""A network from a checkpoint: every parameter filled part by part, every part checked.

The network is built without memory (meta device) and all names and shapes are compared before
anything is allocated. Then each parameter is made in its final type and filled tensor by tensor, so
that loading needs the size of the network and one tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from anyorder.core.errors import CheckpointError
from anyorder.model.architecture import architecture, name_map
from anyorder.model.backends.linear import Linear
from anyorder.model.backends.quantized import (
    Bits,
    QuantizedEmbedding,
    QuantizedLinear,
    quantize_module,
)
from anyorder.model.config import ModelConfig
from anyorder.model.encoder_decoder import EncoderDecoder
from anyorder.model.naming import FUSED, NameMap, Stored, StoredSource, TensorSource
from anyorder.model.transformer import Transformer

Progress = Callable[[int, int], None]
"""Called with (parameters filled, parameters in all)."""

_LINKS = ("link_head.query", "link_head.key", "link_head.gate")
_EDITS = ("edit_head.insertion", "edit_head.deletion")
_TRANSFORM = ("head_transform.dense", "head_transform.norm")
_TEXT_SCALE = "layers.{layer}.text_scale"
_OUTSIDE = ("head", "logit_bias", "length_head", _TEXT_SCALE, *_TRANSFORM, *_LINKS, *_EDITS)
"""Parts whose tensors never have the family's prefix."""
_NOT_WEIGHTS = ("rotary_emb.inv_freq", "rope_freqs.weight")


def load_network(
    config: ModelConfig,
    source: TensorSource,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    bits: Bits | None = None,
    progress: Progress | None = None,
) -> Transformer:
    """The network that `config` describes with the weights of `source`, in evaluation mode.

    With `bits`, linear layers are quantised one by one as they are read, so that the whole of their
    weights never lies in memory.

    CheckpointError names the tensor that is missing, damaged, left over, or of another shape than
    the configuration says.
    """
    with torch.device("meta"):
        network = Transformer(config) if config.encoder is None else EncoderDecoder(config)
    family = architecture(config.architecture)
    if family.aliases or family.beyond:
        source = _Renamed(source, family.aliases, family.beyond)
    names, prefix = name_map(config, source)
    ignored = family.ignored
    if config.tied_embeddings:
        head = names["head"]
        ignored += (f"{head.name if isinstance(head, Stored) else head}.weight",)
    fill(
        network,
        config,
        source,
        names,
        prefix=prefix,
        owner=config.architecture,
        ignored=ignored,
        optional=family.optional,
        dtype=dtype,
        device=device,
        bits=bits,
        progress=progress,
    )
    if bits is not None:
        network.quantize(bits)  # what is left: tied heads
    return network.eval()


class _Renamed:
    """`naming.TensorSource` under today's names, without what lies beyond the network."""

    def __init__(
        self, source: TensorSource, aliases: Mapping[str, str], beyond: tuple[str, ...]
    ) -> None:
        self.format = source.format
        self._source = source
        self._names = {}
        for name in source.names():
            if name.startswith(beyond):
                continue
            old = next((ending for ending in aliases if name.endswith(ending)), "")
            self._names[name.removesuffix(old) + aliases.get(old, "")] = name

    def names(self) -> Iterable[str]:
        """Every tensor's name."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape."""
        return self._source.shape(self._names[name])

    def read(self, name: str, out: torch.Tensor | None = None) -> torch.Tensor:
        """Its values."""
        return self._source.read(self._names[name], out=out)


def fill(
    network: torch.nn.Module,
    config: ModelConfig,
    source: TensorSource,
    names: NameMap,
    *,
    prefix: str = "",
    owner: str,
    ignored: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
    dtype: torch.dtype,
    device: torch.device | str,
    bits: Bits | None = None,
    progress: Progress | None = None,
) -> None:
    """Give every parameter of an empty network (on the meta device) its values.

    `names` says where they lie. The source must hold nothing else but tensors whose names end with
    one of `ignored`; what it lacks of the tensors in `optional` is zero. `owner` is what messages
    call the network's kind.
    """
    parameters = dict(network.named_parameters())
    absent = set(optional) - set(source.names())
    _check(parameters, config, source, names, prefix, owner, ignored, absent)
    for count, (name, empty) in enumerate(parameters.items(), start=1):
        pieces = list(parts(name, empty, config, names, prefix))
        if bits is not None and _lay_out(network, name, pieces, source, config, dtype, bits):
            if progress is not None:
                progress(count, len(parameters))
            continue
        filled = torch.empty(empty.shape, dtype=dtype, device=device)
        for part in parts(name, filled, config, names, prefix):
            if part.tensor in absent:
                part.target.zero_()
            else:
                _fill(part, source, config)
        if config.norm_scale_offset and "norm" in name and source.format == "safetensors":
            filled += config.norm_scale_offset
        module_name, _, attribute = name.rpartition(".")
        parameter = torch.nn.Parameter(filled, requires_grad=False)
        setattr(network.get_submodule(module_name), attribute, parameter)
        if bits is not None:
            quantize_module(network, module_name, bits)
        if progress is not None:
            progress(count, len(parameters))


def _lay_out(
    network: torch.nn.Module,
    name: str,
    pieces: list[Part],
    source: TensorSource,
    config: ModelConfig,
    dtype: torch.dtype,
    bits: Bits,
) -> bool:
    """Put a quantised layer in the place of one whose weights lie in groups already, or embeddings
    that the head is tied to, from the file's own bytes; False if they must be read as numbers."""
    module_name, _, attribute = name.rpartition(".")
    module = network.get_submodule(module_name)
    if not isinstance(module, Linear | torch.nn.Embedding):
        return False
    if not isinstance(source, StoredSource) or attribute != "weight":
        return False
    formats = {source.file_format(p.tensor) for p in pieces if p.tensor in source.names()}
    plain = not any(p.stored.transposed for p in pieces)
    if not plain or not formats or not all(map(QuantizedLinear.reads, formats)):
        return False
    table = isinstance(network, Transformer) and module is network.embedding
    if table:
        # Only where rows of the head are the file's own numbers, and nobody wants the whole table.
        if formats != {"Q8_0"} or not config.tied_embeddings or config.self_conditioning:
            return False
        if config.encoder is not None:
            return False
    elif isinstance(module, torch.nn.Embedding) or module.bias is not None:
        return False
    if not QuantizedLinear.fits(module.weight):
        return False
    layer = QuantizedLinear(module.weight, None, 8 if table else bits)
    first = 0
    for piece in pieces:
        rows_OB = source.stored(piece.tensor)
        if piece.stored.order is not None:
            rows_OB = piece.stored.order(rows_OB, config)
        layer.put_stored(first, rows_OB, source.file_format(piece.tensor))
        source.release(piece.tensor)
        first += len(rows_OB)
    if isinstance(network, Transformer) and table:
        network.quantized_head = layer
        network.embedding = QuantizedEmbedding(layer, dtype)
    else:
        parent, _, own = module_name.rpartition(".")
        setattr(network.get_submodule(parent), own, layer)
    return True


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """A view of a parameter and the tensor that fills it."""

    tensor: str
    stored: Stored
    target: torch.Tensor

    @property
    def stored_shape(self) -> tuple[int, ...]:
        shape = tuple(self.target.shape)
        return shape[::-1] if self.stored.transposed else shape


def parts(
    name: str, parameter: torch.Tensor, config: ModelConfig, names: NameMap, prefix: str
) -> Iterator[Part]:
    """What fills the parameter: one tensor, one per fused projection, or one per expert."""
    stem, _, attribute = name.rpartition(".")
    numbered = re.match(r"(encoder\.)?layers\.(\d+)\.(.*)", stem)
    layer, key, module = "", stem, stem
    if numbered:
        side, layer, module = numbered[1] or "", numbered[2], numbered[3]
        key = f"{side}layers.{{layer}}.{module}"
        if side and config.encoder is not None:
            config = config.encoder
    if key in names:
        pieces = {key: parameter}
    else:
        assert module in FUSED, f"{config.architecture} has no name for {key}"
        keys = [key.replace(module, part) for part in FUSED[module]]
        if module == "attention.qkv":
            own = int(layer or 0)
            kv_heads = config.num_kv_heads_of(own)
            heads = [config.num_heads, kv_heads, kv_heads]
            if config.layers[own].keys_are_values:
                del heads[2], keys[2]
            rows = [count * config.head_width_of(own) for count in heads]
        else:
            rows = [parameter.shape[-2 if attribute == "weight" else -1] // 2] * 2
        split = torch.split(parameter, rows, dim=-2 if attribute == "weight" else -1)
        pieces = dict(zip(keys, split, strict=True))
    for key, piece in pieces.items():
        entry = names[key]
        stored = entry if isinstance(entry, Stored) else Stored(name=entry)
        # Only weights are transposed; a bias or a norm's scale is a plain row.
        if stored.transposed and piece.dim() < 2:
            stored = Stored(name=stored.name, order=stored.order)
        plain = stored.name.replace("{layer}", layer)
        if key not in _OUTSIDE:
            plain = prefix + plain
        if "{expert}" not in plain:
            tensor = f"{plain}.{attribute}" if stored.suffixed else plain
            yield Part(tensor=tensor, stored=stored, target=piece)
            continue
        for expert in range(len(piece)):
            tensor = f"{plain.replace('{expert}', str(expert))}.{attribute}"
            yield Part(tensor=tensor, stored=stored, target=piece[expert])


def _check(
    parameters: dict[str, torch.nn.Parameter],
    config: ModelConfig,
    source: TensorSource,
    names: NameMap,
    prefix: str,
    owner: str,
    ignored: tuple[str, ...],
    absent: set[str],
) -> None:
    """Compare all names and shapes with what the configuration calls for."""
    unused = set(source.names())
    for name, parameter in parameters.items():
        for part in parts(name, parameter, config, names, prefix):
            if part.tensor in absent:
                continue
            if part.tensor not in unused:
                raise CheckpointError(
                    f"the checkpoint lacks tensor {part.tensor!r}; fetch it again."
                )
            unused.discard(part.tensor)
            shape = source.shape(part.tensor)
            # GGUF files drop dimensions of size 1.
            if [size for size in shape if size > 1] != [n for n in part.stored_shape if n > 1]:
                raise CheckpointError(
                    f"tensor {part.tensor!r} has shape {list(shape)}, but the configuration calls "
                    f"for {list(part.stored_shape)}."
                )
    left = sorted(name for name in unused if not name.endswith((*_NOT_WEIGHTS, *ignored)))
    if left:
        raise CheckpointError(
            f"the checkpoint holds {len(left)} tensors that {owner} does not have, "
            f"the first is {left[0]!r}; it may be of another kind than its configuration says."
        )


def _fill(part: Part, source: TensorSource, config: ModelConfig) -> None:
    is_plain = not part.stored.transposed and part.stored.order is None
    direct = is_plain and part.target.is_contiguous() and part.target.device.type == "cpu"
    values = source.read(part.tensor, out=part.target if direct else None)
    values = values.reshape(part.stored_shape)
    if direct and values.data_ptr() == part.target.data_ptr():
        return  # filled in place
    if part.stored.transposed:
        values = values.T
    if part.stored.order is not None:
        values = part.stored.order(values, config)
    part.target.copy_(values)
