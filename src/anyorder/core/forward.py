"""The one question a method can ask: run these tokens, from there, seeing this; tell me that.

`ForwardRequest` says what to run and what to report back, `ForwardResult` is what came back. A
method is a generator that yields lists of requests and is sent lists of results:

    result = yield from forward(sequence, tokens, start)

One cache rule replaces commit, rollback and truncate: **cached entries at or after `start` are
discarded** before the tokens run. Methods do no vocabulary-sized work; they ask for `Outputs`,
which are computed for all rows of all requests in one batched call.
"""

from __future__ import annotations

from collections.abc import Generator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from anyorder.core.attention import CAUSAL, Attention

if TYPE_CHECKING:
    import torch

    from anyorder.core.request import Request
    from anyorder.core.sequence import Sequence

MOST_NOISE = 0.999
"""The share of noise that networks are told at most: their level of it is infinite at 1."""


# ------------------------------------------------------------------------------ what to report back
AcceptanceRule = Literal["match", "ratio", "typical"]
"""match: a proposal stays if it is what would have been drawn. ratio: with probability target over
proposal, else a draw from what remains. typical: if likely enough (changes the distribution)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Check:
    """A draft check: which of a request's tokens may stay, decided at once after the pass.

    The tokens from offset `first` on are proposals, a chain (causal attention) or a tree; those
    before it are text. Afterwards **the sequence holds the text and the accepted proposals**, in
    order, as if they had been run causally, and nothing after them. `sampling.verify` has the rules
    and their sources.
    """

    first: int
    rule: AcceptanceRule = "match"
    proposals: Seq[Any] = ()
    """What each proposal was drawn from (`ForwardResult.distributions`), None where it was not
    drawn at all; empty: none was drawn. Only the ratio rule asks."""
    epsilon: float = 0.09
    """Typical: a probability above this is always enough ..."""
    delta: float = 0.3
    """... and so is one above delta * exp(-entropy)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdict:
    """What a draft check decided."""

    accepted: list[int]
    """Offsets of the accepted proposals among the request's tokens, along one path."""
    last: int
    """Offset of the last token that stays; the token drawn after it is the last of `tokens`."""
    tokens: list[int]
    """The accepted proposals, and one token more, drawn after them. That one is absent where none
    can be drawn and something was accepted."""
    logprobs: list[float]
    """Of `tokens`, under the model's distribution."""
    top: list[list[tuple[int, float]]]
    """As `Outputs.top`, one list per token of `tokens`."""


@dataclass(frozen=True, kw_only=True)
class PatchDraw:
    """Draw what follows a row from a network that gives no probabilities, only draws of the next
    patch of tokens (CALM). `sampling.patches` says what temperature and beginning do."""

    candidates: int = 1
    """How often the network is drawn from; one of the draws is taken."""
    begins: tuple[int, ...] = ()
    """The patch begins with these tokens."""


@dataclass(frozen=True, kw_only=True)
class Patch:
    """Tokens drawn at once."""

    tokens: list[int]
    logprobs: list[float]
    """Estimates: of the draws that agree so far, the logarithm of the share that agree with the
    token too. 0 where the network was drawn from once."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What to report for each of a request's `rows`.

    Two distributions exist at a row: the *model's* (softmax of its logits) and the *processed* one
    (after guidance, penalties, bans, temperature and truncation), from which tokens are drawn.
    """

    token: bool = True
    """Draw a token from the processed distribution (argmax at temperature 0)."""
    logprob: bool = True
    """Log-probability of the drawn token under the model's distribution."""
    entropy: bool = False
    """Entropy of the model's distribution, nats."""
    margin: bool = False
    """Probability of the likeliest token less that of the second, by the model's distribution."""
    processed: bool = False
    """Entropy and margin of the processed distribution instead, and the drawn token's
    log-probability there (`ForwardResult.confidences`). Temperature 0, which leaves one token,
    counts as 1 here."""
    belief: float | None = None
    """Of the model's distribution at this temperature: its entropy, and the mean embedding of its
    tokens, to be handed on as `ForwardRequest.conditioning` to networks that condition
    themselves."""
    top: int = 0
    """The k likeliest tokens under the model's distribution, with their log-probabilities."""
    best: int = 0
    """The k highest scores for a search: the model's log-probabilities after penalties and bans,
    without temperature or truncation, not renormalised (what beam search adds up)."""
    given: tuple[int, ...] | None = None
    """Log-probabilities of these ids under the model's distribution, one id per row."""
    chance: bool = False
    """Also the probability of the `given` ids in the processed distribution."""
    accepted: Check | None = None
    """Check a draft. Rows are then the last token of text and all proposals. Of each row's own
    answer nothing is reported but `token`, NO_TOKEN where it has none: what follows a wrong
    proposal may have no answer. Leave `token` off unless that is wanted."""
    draws: int = 0
    """Further tokens drawn from the processed distribution, independently, with replacement."""
    distribution: bool = False
    """The processed distribution as a whole, to be handed on in a `Check`; not to be looked at."""
    patch: PatchDraw | None = None
    """The next patch, of networks that draw patches; such a row has no other outputs."""
    heads: int = 0
    """The k likeliest tokens of each of the network's further prediction heads (Medusa, blockwise
    decoding). With `accepted`, for the row `Verdict.last` alone."""
    links: bool = False
    """Where paths through the rows go on, of networks whose decoder writes a graph of vertices
    (`Abilities.num_links`); the rows are all of its vertices, in order."""
    edits: bool = False
    """What is missing behind each row's token, and whether the token belongs there, of networks
    that tell (`Abilities.num_insertions`); the rows lie side by side and have no other outputs."""
    features: tuple[int, ...] = ()
    """The residual stream after so many layers, side by side, of *all* tokens of the request: what
    drafters read. Prefixes are not taken from the cache then."""
    hidden: bool = False
    """The last hidden state, [rows, width]."""
    logits: bool = False
    """The model's raw logits, [rows, vocabulary]; for research and tests only."""


NO_TOKEN = -1
"""Stands in `ForwardResult.tokens` for a row of a draft check that has no answer."""
TOKEN = Outputs()
NOTHING = Outputs(token=False, logprob=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class CanvasRows:
    """For requests whose rows are places of a canvas, told in any order: what stands there now.

    Sampling controls that look at the text take all that stands on the canvas, before and behind a
    place, for the tokens generated so far: penalties count it, n-gram bans and bad words look at
    every window around the place. End tokens are banned by place: before `min_new_tokens`, and
    before the last token that the request fixed. A guide allows what some complete text has at the
    place, along with all that stands. The mask token is impossible, also in the model's
    own distribution, as the network was trained (SUBS, arXiv 2406.07524).
    """

    text: Seq[int | None]
    """The new text, None where nothing stands."""
    places: Seq[int]
    """Which place of it each output row tells, one a row."""
    length: int | None = None
    """Places of the new text in all, where a guide needs to know how far it goes: those beyond
    `text` are open. None: `Context.max_new_tokens`."""
    blank: frozenset[int] = frozenset()
    """Tokens that are no part of the text (tags, padding). A guide lets one stand at any open place
    of `text`, which is then none, and at rows that tell what comes behind it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ForwardRequest:
    """Run `tokens` at positions `start`, `start` + 1, ... of `sequence` by its role's model."""

    sequence: Sequence
    tokens: Seq[int]
    start: int
    """Position of the first token; at most the sequence's length. What was cached from here on is
    discarded."""
    attention: Attention = CAUSAL
    rows: Seq[int] | None = None
    """Offsets into `tokens` that need output; the last one by default."""
    outputs: Outputs = TOKEN
    sampling: Request | None = None
    """Sampling controls where they differ from the request's own (`dataclasses.replace` it)."""
    stream: str | None = None
    """Which random numbers to draw with: equal streams draw alike at equal positions. The role by
    default."""
    canvas: CanvasRows | None = None
    """Which places of the new text its rows tell; None: each row tells the next token."""
    layers: int | None = None
    """Run only so many of the lower layers and read them out by the final norm and head (early
    exit). What is cached this way must be discarded before the sequence is run in full."""
    conditioning: torch.Tensor | None = None
    """[rows, any width] what the network reads beside the tokens, a row for each of them or for
    the first ones; for networks that do."""
    noise: float | None = None
    """Which share of the canvas that it shows is noise or masked, for networks that look at it.
    None: it shows none."""
    memory: Sequence | None = None
    """An encoder's sequence, already run, that `sequence` cross-attends to from now on; given with
    `start` 0, and kept open as long. None: the one it has, which is the prompt's unless another was
    given."""

    @property
    def role(self) -> str:
        """Which model runs it. Keys and values belong to one model, so the sequence decides."""
        return self.sequence.role

    @property
    def output_rows(self) -> Seq[int]:
        """`rows` with the default filled in."""
        if self.rows is not None:
            return self.rows
        check = self.outputs.accepted
        return range(len(self.tokens) - 1 if check is None else check.first - 1, len(self.tokens))

    @property
    def reads_prefixes(self) -> bool:
        """May its first tokens be taken from the prefix cache instead of being run?"""
        plain = self.layers is None and self.conditioning is None and self.noise is None
        return plain and not self.outputs.features

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + len(self.tokens)


@dataclass(frozen=True, kw_only=True, eq=False)
class ForwardResult:
    """What came back; every list has one entry per output row. Unasked-for fields stay empty."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    best: list[list[tuple[int, float]]] = field(default_factory=list)
    beliefs: list[float] = field(default_factory=list)
    """Entropies, nats."""
    embeddings: torch.Tensor | None = None
    """[rows, width]; the beliefs' mean embeddings."""
    given: list[float] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    verdict: Verdict | None = None
    draws: list[list[int]] = field(default_factory=list)
    distributions: list[Any] = field(default_factory=list)
    patches: list[Patch] = field(default_factory=list)
    heads: list[list[list[tuple[int, float]]]] = field(default_factory=list)
    """By row, by head: (token, log-probability), likeliest first."""
    links: torch.Tensor | None = None
    """float32 [rows, rows] in main memory; log-probability of going from one row to another, -inf
    where that is not possible."""
    insertions: list[list[float]] = field(default_factory=list)
    """By row: log-probabilities that 0, 1, ... tokens are missing behind its token; the last one's
    is of so many or more."""
    deletions: list[float] = field(default_factory=list)
    """Probability that a row's token does not belong where it is."""
    features: torch.Tensor | None = None
    """[tokens, len(Outputs.features) * width]"""
    hidden: torch.Tensor | None = None
    logits: torch.Tensor | None = None


Decoding = Generator[list[ForwardRequest], list[ForwardResult], None]
"""What `Method.decode` returns."""


def forward(
    sequence: Sequence,
    tokens: Seq[int],
    start: int,
    *,
    attention: Attention = CAUSAL,
    rows: Seq[int] | None = None,
    outputs: Outputs = TOKEN,
    sampling: Request | None = None,
    stream: str | None = None,
    canvas: CanvasRows | None = None,
    layers: int | None = None,
    conditioning: torch.Tensor | None = None,
    noise: float | None = None,
    memory: Sequence | None = None,
) -> Generator[list[ForwardRequest], list[ForwardResult], ForwardResult]:
    """One forward request and its result: `result = yield from forward(...)`."""
    (result,) = yield [
        ForwardRequest(
            sequence=sequence,
            tokens=tokens,
            start=start,
            attention=attention,
            rows=rows,
            outputs=outputs,
            sampling=sampling,
            stream=stream,
            canvas=canvas,
            layers=layers,
            conditioning=conditioning,
            noise=noise,
            memory=memory,
        )
    ]
    return result


def forward_all(
    requests: list[ForwardRequest],
) -> Generator[list[ForwardRequest], list[ForwardResult], list[ForwardResult]]:
    """Several forward requests in one tick; results in the same order."""
    results: Any = yield requests
    return list(results)
