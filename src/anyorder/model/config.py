"""What a network looks like, as data: everything that varies between model families.

One stack (`transformer.Transformer`) reads this and branches on it; it knows no family's name. The
files in `architectures/` translate a checkpoint's own configuration into a `ModelConfig`.

Importing this module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from anyorder.core.errors import CheckpointError
from anyorder.core.method import AttentionKind, DecodingOptions, TextRules

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
"""gelu is the exact one (erf), gelu_tanh its tanh approximation."""
NormPlacement = Literal["before", "after_residual", "around", "after_branch"]
"""before: x + f(norm(x)). after_residual: norm(x + f(x)) (OPT-350m).
around: x + norm(f(norm(x))) (Gemma 3). after_branch: x + norm(f(x)) (OLMo 2)."""


# ------------------------------------------------------------------------------ rotary positions
@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Positions divided by `factor` (position interpolation, arXiv 2306.15595)."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class NtkScaling:
    """The base stretched once and for all, so that low frequencies slow down by `factor` and high
    ones hardly change (NTK-aware interpolation)."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class DynamicScaling:
    """NTK-aware with a factor that grows with the length once `original_length` is passed.

    A token at position p is rotated as if the sequence were p + 1 long. That makes the rotation a
    function of the position alone, whatever passes the tokens are split into. transformers rotates
    all tokens of one call by the call's last position; the two agree up to `original_length` and
    for tokens decoded one by one after it.
    """

    factor: float
    original_length: int


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): high frequencies kept, low ones interpolated, a ramp between."""

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    magnitude: float = 1.0
    """Cosine and sine are multiplied by it ("attention factor")."""
    truncate: bool = True
    """Round the ramp's ends to whole dimensions."""


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1: wavelengths over the original context slowed down by `factor`, smoothly."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_length: int


@dataclass(frozen=True, kw_only=True)
class FrequencyDivisors:
    """Each frequency divided by its own number, as GGUF files store a scaling."""

    divisors: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ProportionalScaling:
    """The fastest frequencies, a share of them, as they are; the others do not turn (Gemma 4)."""

    share: float


RopeScaling = (
    LinearScaling
    | NtkScaling
    | DynamicScaling
    | YarnScaling
    | Llama3Scaling
    | FrequencyDivisors
    | ProportionalScaling
)


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions (arXiv 2104.09864) in the half-and-half layout."""

    width: int
    """Leading dimensions of each head that are rotated."""
    base: float = 10_000.0
    scaling: RopeScaling | None = None


@dataclass(frozen=True, kw_only=True)
class RelativePositions:
    """A learned bias of attention scores by distance, in buckets that grow (T5, arXiv 1910.10683);
    one table for all layers."""

    num_buckets: int
    max_distance: int
    """From here on all distances share the last bucket."""
    bidirectional: bool
    """Half of the buckets are for what lies ahead."""


# ----------------------------------------------------------------------------------------- layers
@dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture-of-experts MLP: each token goes to its `per_token` likeliest experts."""

    num: int
    per_token: int
    width: int
    normalize: bool
    """Make the chosen experts' weights add up to 1."""
    scores: Literal["softmax", "sigmoid"] = "softmax"
    """What makes weights of the router's outputs: of all experts together, or of each alone."""
    choice_bias: bool = False
    """Is a number of each expert's own added to its weight where experts are chosen, and only
    there? (DeepSeek-V3, arXiv 2412.19437)"""
    num_groups: int = 1
    groups_per_token: int = 1
    """Experts are chosen from so many groups, those whose two best experts' weights add up to
    most."""
    scale: float = 1.0
    """The chosen experts' weights are multiplied by it in the end."""
    shared_width: int = 0
    """Inner width of an expert that every token visits; 0: there is none."""
    shared_gate: bool = True
    """Is the shared expert's output scaled by a gate?"""
    beside_dense: bool = False
    """Gemma 4: the experts stand beside a dense MLP, each with norms of its own; the router reads
    the residual stream by another norm, and each expert's weight is multiplied by a number."""

    def __post_init__(self) -> None:
        if self.per_token > self.num:
            raise CheckpointError(
                f"each token is to visit {self.per_token} experts, but there are {self.num}."
            )
        if self.num % self.num_groups or self.groups_per_token > self.num_groups:
            raise CheckpointError(
                f"{self.num} experts cannot form {self.num_groups} equal groups, of which each "
                f"token visits {self.groups_per_token}."
            )
        if self.per_token > self.num // self.num_groups * self.groups_per_token:
            raise CheckpointError(
                f"{self.groups_per_token} groups of {self.num // self.num_groups} experts do not "
                f"hold the {self.per_token} that each token is to visit."
            )


@dataclass(frozen=True, kw_only=True)
class Modulation:
    """Norms and branches that follow how noisy a canvas is (see `model.modulation`)."""

    width: int
    """Of the vector that stands for the noise level."""
    reads_noise: bool
    """False: the level is 0, whatever the noise."""


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """What may differ from layer to layer."""

    rope: Rope | None = None
    window: int | None = None
    """A token sees itself and at most the `window - 1` positions before it; None: all."""
    window_ahead: bool = False
    """Does the window reach as far ahead, where tokens see what is ahead?"""
    attention_norm: bool = True
    """Is there a norm before attention, where the family has one there?"""
    head_width: int | None = None
    """None: the model's."""
    num_kv_heads: int | None = None
    """None: the model's."""
    keys_are_values: bool = False
    """Are values the keys, as they are before their norm and rotation?"""
    attention_scale: float
    """Queries times keys are multiplied by it."""
    experts: Experts | None = None
    """None: a dense MLP."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One stack. An encoder-decoder is a decoder that has an `encoder`, which has the decoder's
    embedding and no head."""

    architecture: str
    """Name of the file in `architectures/` that reads its checkpoints."""
    vocabulary_size: int
    width: int
    """Of the residual stream."""
    context_length: int
    layers: tuple[LayerConfig, ...]
    end_tokens: frozenset[int] = frozenset()
    encoder: ModelConfig | None = None
    """What every layer cross-attends to after its self-attention."""
    text_rules: TextRules = field(default_factory=TextRules)

    # What the weights were trained for
    attention: frozenset[AttentionKind] = frozenset({"causal"})
    mask_token: int | None = None
    """For a masked place; None: what the tokenizer says, if anything."""
    canvas_length: int = 0
    """Tokens of a noisy canvas behind text that is read causally; 0: they see each other."""
    knows_masks: bool = True
    """False: it was trained without, whatever the tokenizer has."""
    tells_ratios: bool = False
    """See Abilities."""
    block_size: int = 0
    """Tokens of a block, of networks that denoise in blocks."""
    token_shift: bool = False
    """Is a masked place told by the token before it?"""
    decoding: DecodingOptions = field(default_factory=dict, hash=False)
    """See Abilities."""
    closes_texts: bool = False
    """Does what the tokenizer puts behind a text stand behind every canvas?"""

    # Attention
    num_heads: int
    num_kv_heads: int
    head_width: int
    attention_width: int | None = None
    """Of what queries, keys and values are projected from; None: `width`."""
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: Literal["none", "head", "full"] = "none"
    """head: each head's queries and keys on their own. full: all heads' queries together."""
    clip_qkv: float | None = None
    """Queries and keys (after their norm) and values are clamped to [-clip, clip]."""
    value_norm: bool = False
    """Are each head's values normalised, without a scale?"""
    alibi: bool = False
    """Attention scores fall linearly with distance (arXiv 2108.12409)."""
    relative_positions: RelativePositions | None = None

    # MLP
    mlp_width: int
    activation: Activation
    gated: bool
    mlp_bias: bool = False

    # Residual stream
    norm: Literal["rms", "layer"]
    norm_epsilon: float
    norm_bias: bool = True
    """Of layer norms."""
    norm_scale_offset: float = 0.0
    """What checkpoints leave off the norms' scale (Gemma: 1); added on loading."""
    norm_placement: NormPlacement = "before"
    modulation: Modulation | None = None
    """None: norms and branches are the same at all levels of noise. For norms before branches."""
    parallel_residual: bool = False
    """x + attention(norm(x)) + mlp(norm(x)), each with its own norm (GPT-NeoX)."""
    layer_scale: bool = False
    """Is each layer's output multiplied by a number of its own, with a `canvas_length` by another
    where tokens are text?"""
    final_norm: bool = True

    # Embeddings
    embedding_width: int | None = None
    """Set where it differs from `width`; projections lead in and out (OPT-350m)."""
    embedding_scale: float = 1.0
    embedding_norm: bool = False
    learned_positions: int = 0
    """Rows of a learned position table; 0: none."""
    position_offset: int = 0
    """Row of position 0 in that table."""
    token_types: int = 0
    """Rows of a table whose first row is added to every embedding; 0: none."""
    self_conditioning: bool = False
    """Is what the network believed of a canvas before added to the canvas's embeddings?"""
    sinusoidal_positions: bool = False
    """Sines, then cosines, of the position are added to the embedding (arXiv 1706.03762)."""
    tied_embeddings: bool = True
    head_bias: bool = False
    logit_bias: bool = False
    """Logits have a bias of their own, whatever the head."""
    head_transform: Activation | None = None
    """Before the head lie a square layer, this activation and a norm (BERT); None: they do not."""
    head_transform_bias: bool = True
    logit_scale: float = 1.0
    """Final hidden states are multiplied by it on their way to the head."""
    link_heads: int = 0
    """Heads that say where a path through the decoder's vertices goes on; 0: there are no links."""
    vertices_per_token: int = 0
    """Places of a decoder that writes in one pass, for each token of the source and its two ends;
    0: it does not."""
    insertion_classes: int = 0
    """Numbers of tokens missing behind a token, from 0, that a head tells apart; another one tells
    whether the token belongs where it is. 0: there are no such heads."""
    length_classes: int = 0
    """Lengths of the target, from 0, that a head on the encoder tells apart; 0: there is none."""
    logit_cap: float | None = None
    """Logits are squashed into (-cap, cap) by tanh."""

    def __post_init__(self) -> None:
        if not self.layers:
            raise CheckpointError("the configuration has no layers; there must be at least 1.")
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"{self.num_heads} heads cannot share {self.num_kv_heads} key/value heads evenly."
            )
        for token in self.text_rules.tokens:
            if not 0 <= token < self.vocabulary_size:
                raise CheckpointError(
                    f"the configuration forces or bans token {token}; token ids are 0 to "
                    f"{self.vocabulary_size - 1}."
                )

    def head_width_of(self, layer: int) -> int:
        """Width of a layer's heads."""
        return self.layers[layer].head_width or self.head_width

    def num_kv_heads_of(self, layer: int) -> int:
        """A layer's key/value heads."""
        return self.layers[layer].num_kv_heads or self.num_kv_heads

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """The distinct rotary embeddings of the layers."""
        return tuple(dict.fromkeys(layer.rope for layer in self.layers if layer.rope))
