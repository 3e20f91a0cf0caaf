"""A decoding method: frozen options plus one generator.

Adding one is adding one file to `methods/`; CONTRIBUTING.md shows how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from anyorder.core import lookup
from anyorder.core.errors import InvalidRequest, UnsupportedMethod
from anyorder.core.options import validate

if TYPE_CHECKING:
    from anyorder.core.forward import Decoding
    from anyorder.core.plans import PlanTokens
    from anyorder.core.request import Request
    from anyorder.core.sequence import Sequence

_DRAWS = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
"""Controls of draws, and what switches them off."""
_READS_TEXT = {
    "min_new_tokens": 0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "no_repeat_ngram": 0,
    "bad_words": (),
    "guide": None,
}
"""Controls that depend on the text around a token, and what switches them off."""
AttentionKind = Literal["causal", "bidirectional"]
VertexKind = Literal["linked", "single"]
DecodingOptions = Mapping[str, Mapping[str, object]]
"""By method, the options that a model's authors decode with."""


@dataclass(frozen=True, kw_only=True)
class TextRules:
    """What a checkpoint says of every text that is made with it."""

    start_tokens: tuple[int, ...] = ()
    """Behind an encoder, which reads the prompt, texts begin with these."""
    first_token: int | None = None
    """Always the first new token."""
    last_tokens: frozenset[int] = frozenset()
    """The last new token of a text that reaches its length limit is one of these, if any."""
    banned: tuple[tuple[int, ...], ...] = ()
    """Tokens, or several in a row, that never occur."""

    @property
    def tokens(self) -> frozenset[int]:
        """Every token that a rule names."""
        first = () if self.first_token is None else (self.first_token,)
        return self.last_tokens.union(self.start_tokens, first, *self.banned)


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """What a loaded model can do; read from its checkpoint, asked for by methods."""

    name: str
    vocabulary_size: int
    context_length: int
    end_tokens: frozenset[int] = frozenset()
    mask_token: int | None = None
    attention: frozenset[AttentionKind] = frozenset({"causal"})
    """Which kinds of attention the weights were trained for."""
    num_layers: int = 0
    """Layers that a request may stop after (`ForwardRequest.layers`)."""
    num_heads: int = 0
    """Further prediction heads (Medusa, blockwise decoding); 0: the next-token head alone."""
    kind: str = "decoder"
    """decoder: runs on tokens alone. Anything else is a drafter's network, named for its kind."""
    features: tuple[int, ...] = ()
    """A drafter's network: which layers of the target it reads (`Outputs.features`)."""
    block_size: int = 0
    """Tokens of a block, for networks that denoise or draft in blocks."""
    clean_text: AttentionKind = "bidirectional"
    """How tokens of clean blocks saw each other where a network learnt to denoise behind them: both
    ways within a block, or from left to right, as where it writes token by token."""
    whole_canvas: bool = False
    """Of networks that denoise in blocks: did they learn to denoise a text as a whole, too?"""
    canvas_length: int = 0
    """Tokens of a noisy canvas, of networks that read text causally and see a canvas behind it
    both ways; 0: text and canvas see each other."""
    tells_ratios: bool = False
    """Does it tell, of noisy tokens, how much likelier they are than those that stand there? Passes
    are answered with clean tokens all the same (`sampling.ratios`)."""
    token_shift: bool = False
    """Of networks with a mask token: is a place told by the token before it, instead of by the
    mask that stands there?"""
    decoding: DecodingOptions = field(default_factory=dict, hash=False)
    """Which options its authors decode with: a method's defaults on this model."""
    closing_tokens: tuple[int, ...] = ()
    """What stands behind the canvas in a pass that shows all of it ([SEP]); they end a text."""
    source_length: int = 0
    """Most tokens that its encoder reads; 0: it has none."""
    num_lengths: int = 0
    """Lengths of the target, from 0, that its length head tells apart; 0: it has none."""
    vertices_per_token: int = 0
    """Places of a decoder that writes in one pass, for each token of the source and its two ends;
    0: it does not."""
    num_links: int = 0
    """Heads of the links between those places, which make them a graph; 0: there are none."""
    num_insertions: int = 0
    """Numbers of tokens missing behind a token, from 0, that its edit heads tell apart; 0: it has
    none."""
    text_rules: TextRules = TextRules()
    infill_tokens: tuple[int, int, int] | None = None
    """What stands before prefix, suffix and middle where a text's middle is filled in."""
    plan_tokens: PlanTokens | None = None
    """Tags of planned diffusion."""
    patch_size: int = 0
    """Tokens of a patch, for networks that read and draw patches (CALM); 0: it reads tokens."""
    fill_token: int | None = None
    """Fills up a text's last patch."""

    @property
    def vertices(self) -> VertexKind | None:
        """What a decoder that writes in one pass writes: a graph of vertices or a row of them."""
        if not self.vertices_per_token:
            return None
        return "linked" if self.num_links else "single"


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method needs of the models it runs on."""

    attention: AttentionKind = "causal"
    mask_token: bool = False
    heads: bool = False
    patches: bool = False
    plans: bool = False
    vertices: VertexKind | None = None
    """A decoder that lays out places in one pass: linked, as a graph, or single, as a row."""
    edits: bool = False
    roles: tuple[str, ...] = ("target",)

    @property
    def text(self) -> str:
        """The needs in words."""
        words = [f"{self.attention} attention"]
        words += ["a mask token"] * self.mask_token
        words += ["further prediction heads"] * self.heads
        words += ["patches of tokens"] * self.patches
        words += ["the tags of plans"] * self.plans
        words += [f"a decoder of {self.vertices} vertices"] * bool(self.vertices)
        words += ["edit heads"] * self.edits
        words += [f"a {role} model" for role in self.roles if role != "target"]
        return ", ".join(words)

    def missing(self, abilities: Abilities, roles: Seq[str]) -> str | None:
        """The first unmet need in words, or None."""
        if self.mask_token and abilities.mask_token is None:
            return f"a mask token; {abilities.name} has none"
        if self.heads and not abilities.num_heads:
            return f"further prediction heads; {abilities.name} has none"
        if self.patches and not abilities.patch_size:
            return f"patches of tokens; {abilities.name} reads tokens one by one"
        if abilities.patch_size and not self.patches:
            return f"tokens one by one; {abilities.name} reads patches of {abilities.patch_size}"
        if self.plans and abilities.plan_tokens is None:
            return f"the tags of plans as control tokens; {abilities.name} lacks some"
        if self.vertices != abilities.vertices:
            wanted = f"a decoder of {self.vertices} vertices" if self.vertices else "a text decoder"
            found = f"of {abilities.vertices} vertices" if abilities.vertices else "of text"
            return f"{wanted}; that of {abilities.name} is one {found}"
        if self.edits and not abilities.num_insertions:
            return f"edit heads; {abilities.name} has none"
        if self.attention not in abilities.attention:
            kinds = " and ".join(sorted(abilities.attention))
            return f"{self.attention} attention; {abilities.name} was trained with {kinds}"
        for role in self.roles:
            if role not in roles:
                return f"a {role} model; the engine has {', '.join(roles)}"
        return None


class Context(Protocol):
    """One running request, as its method sees it."""

    @property
    def request(self) -> Request:
        """The request as the user made it; sampling controls among its fields."""

    @property
    def prompt(self) -> Seq[int]:
        """Token ids of the prompt; at least one, but for methods that `may_begin` without."""

    @property
    def max_new_tokens(self) -> int:
        """How many tokens may be emitted; the request's wish within the model's context."""

    @property
    def canvas(self) -> Seq[int | None] | None:
        """What the request fixes of the new text, None at places to fill in; `max_new_tokens`
        places. None: nothing is fixed."""

    @property
    def abilities(self) -> Abilities:
        """What the target model can do."""

    @property
    def finished(self) -> bool:
        """Has every choice ended (end token, stop string, limit, guide complete)?"""

    @property
    def models(self) -> Mapping[str, Abilities]:
        """What the models of all roles can do."""

    def sequence(self, role: str = "target") -> Sequence:
        """A new, empty cached sequence for one of the engine's models."""

    @property
    def num_passes(self) -> int:
        """How many passes there were: the number of the last one."""

    def shared(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returned when it was first called for this name: something that outlives the
        request. Shared like cached prefixes, among requests of equal `cache_salt`, and private to
        the request where `prefix_cache` is off."""

    def pass_seconds(
        self, num_tokens: int, role: str = "target", layers: int | None = None
    ) -> float | None:
        """How long a pass takes in which this request runs so many tokens, beside what others run
        at the moment; from passes measured on this machine. None: too few were measured yet."""

    @property
    def num_others(self) -> int:
        """How many other texts shared the target's latest pass; they wait for longer ones too."""

    def note(self, text: str) -> None:
        """Tell the user something about how the answer was made (`Report.notes`), once."""

    def emit(
        self,
        tokens: Seq[int],
        logprobs: Seq[float],
        *,
        alternatives: Seq[Seq[tuple[int, float]]] = (),
        choice: int = 0,
        score: float | None = None,
        num_drafted: int = 0,
        passes: Seq[int] = (),
    ) -> None:
        """Make tokens final and stream them. What lies beyond the end of the text is dropped, so
        emit freely and look at `finished`. `alternatives` are (id, log-probability) lists, one per
        token, for requests that ask for logprobs; `score` is a search's; the first `num_drafted`
        tokens were proposed by a drafter. `passes` as in `reveal`."""

    def reveal(
        self,
        places: Seq[int],
        tokens: Seq[int],
        logprobs: Seq[float],
        *,
        alternatives: Seq[Seq[tuple[int, float]]] = (),
        choice: int = 0,
        score: float | None = None,
        num_drafted: int = 0,
        passes: Seq[int] = (),
    ) -> None:
        """Make tokens final at these places of the new text (0 is its first token), in any order;
        `emit` is this at the next open places. They are streamed once no open place lies before
        them. A place is revealed once; a canvas's fixed places are revealed from the start. What
        lies beyond the end of the text is dropped, whether the end is reached yet or not. `passes`
        say which pass each token came from (see `num_passes`), where not all from the last one."""

    def preview(self, places: Seq[int], tokens: Seq[int | None], choice: int = 0) -> None:
        """Tell what stands at places and is not final: a draft, or None for a token taken back.
        Reported (`Choice.history`) where the request asks for it, never streamed."""

    def end_at(self, num_tokens: int, choice: int = 0) -> None:
        """The text has no more than so many tokens, revealed or still to be; it then ends with
        finish reason "stop". No token may be final behind that."""

    def compatible(
        self,
        canvas: Seq[int | None],
        places: Seq[int],
        tokens: Seq[int],
        *,
        fresh: bool = True,
        blank: frozenset[int] = frozenset(),
    ) -> list[int]:
        """Which of these tokens may stand on the canvas together, the earlier ones first: indices.
        Each alone was drawn under all bans; two neighbours may still spell a banned sequence or
        repeat an n-gram, and two tokens anywhere leave no text that the guide allows. The first may
        if it was drawn with the canvas as it is, or with less open; where not even that is so, they
        are not `fresh`. For `blank` tokens see `CanvasRows`."""

    def fits(self, num_tokens: int) -> bool:
        """Does the request's guide, if any, allow a canvas of so many places?"""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text that goes on from another; for methods that `reads_text`."""

    def text(self, tokens: Seq[int]) -> str:
        """The text of tokens that go on from others, control tokens left out; for the same."""

    def chance(self, name: str, *numbers: int) -> float:
        """A number in [0, 1) for the method's own decisions: a function of the request's seed, the
        choice and the arguments."""

    def ends(self, tokens: Seq[int]) -> bool:
        """Would a choice of exactly these new tokens be finished before the length limit?"""

    def report_prompt(
        self, logprobs: Seq[float], alternatives: Seq[Seq[tuple[int, float]]]
    ) -> None:
        """Hand over log-probabilities of prompt tokens 1, 2, ... (`Request.prompt_logprobs`), and
        for each of them the `Request.logprobs` likeliest tokens with theirs."""

    def report_embedding(self, vector: Seq[float]) -> None:
        """Hand over the prompt as a vector (`Request.embedding`)."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all decoding methods. A subclass's fields are its options."""

    needs: ClassVar[Needs] = Needs()
    exact: ClassVar[bool] = True
    """Does it produce the model's own distribution (or, for a search, exactly what it states)?"""
    scores_prompt: ClassVar[bool] = False
    """Does it hand over what is asked of the prompt alone: log-probabilities
    (`Context.report_prompt`) and its vector (`Context.report_embedding`)?"""
    fills_canvas: ClassVar[bool] = False
    """Does it decide places in any order, and so around fixed tokens (`Context.canvas`)?"""
    may_begin: ClassVar[bool] = False
    """Does it need no prompt, on networks that tell a place by the mask that stands there?"""
    any_order: ClassVar[bool] = False
    """Does it place tokens in any order, canvas or not? Guides are finite automata then."""
    reads_text: ClassVar[bool] = False
    """Does it go by the text of tokens, so that it needs a tokenizer?"""
    makes_choices: ClassVar[bool] = False
    """Does one run produce all `n` choices itself? Otherwise the engine runs it once per choice."""

    def __post_init__(self) -> None:
        validate(self)

    def refuse_draws(self, request: Request) -> None:
        """For searches: raise InvalidRequest for controls that apply to draws only."""
        for name, neutral in _DRAWS.items():
            if getattr(request, name) != neutral:
                raise InvalidRequest(
                    f"{lookup.name_of(self)} takes the best scores and draws nothing: leave {name} "
                    f"at {neutral:g}."
                )

    def refuse_history(self, request: Request) -> None:
        """For methods that tell tokens before it is known which others stand in the text: raise
        InvalidRequest for controls that depend on those."""
        for name, neutral in _READS_TEXT.items():
            given = getattr(request, name)
            if given != neutral and (given or neutral):
                raise InvalidRequest(
                    f"{lookup.name_of(self)} tells all tokens at once and cannot honour {name}, "
                    f"which depends on the text around them; leave it at {neutral!r}."
                )

    def decode(self, context: Context) -> Decoding:
        """The loop: yield forward requests, receive results, emit tokens."""
        raise AssertionError(f"{type(self).__name__} does not define decode()")

    def check(self, request: Request) -> None:
        """Raise InvalidRequest for a combination of request and options that cannot be honoured."""

    def check_length(self, num_tokens: int) -> None:
        """Raise InvalidRequest if a text of at most so many tokens does not suit the options."""

    def missing(self, models: Mapping[str, Abilities]) -> str | None:
        """What these options lack of the engine's models (by role), in words, or None."""
        return None

    @property
    def keeps_distribution(self) -> bool:
        """`exact`, for these options."""
        return self.exact

    @property
    def num_scratch_tokens(self) -> int:
        """Most tokens it keeps cached at once beyond prompt and final text."""
        return 0

    @property
    def num_branches(self) -> int:
        """Most sequences that it keeps at once beside the first, each with pages of its own that
        are not full, where they go their own way and where they end."""
        return 0

    def cached_length(self, num_tokens: int, abilities: Abilities) -> int:
        """Most tokens it keeps cached at once for prompt and text of so many tokens together."""
        return num_tokens + self.num_scratch_tokens

    def cached_elsewhere(
        self, num_tokens: int, models: Mapping[str, Abilities]
    ) -> Mapping[str, int]:
        """The same of other models' caches, by role."""
        return {}

    @classmethod
    def require(cls, name: str, abilities: Abilities, roles: Seq[str], usable: Seq[str]) -> None:
        """Raise UnsupportedMethod, naming the methods this model does support."""
        missing = cls.needs.missing(abilities, roles)
        if missing is not None:
            raise UnsupportedMethod(
                f"{name} needs {missing}. Methods this model supports: {', '.join(usable)}."
            )
