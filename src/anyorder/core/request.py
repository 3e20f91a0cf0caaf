"""What a user asks for (`Request`, `Guide`) and what comes back (`Completion`, `Event`)."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from anyorder.core.errors import GuideError, InvalidRequest
from anyorder.core.options import Range, validate

Message = Mapping[str, Any]
"""A chat message: at least "role" and "content"."""
Prompt = str | Seq[int] | Seq[Message]
"""Text, token ids, or chat messages (rendered by the model's chat template)."""
CanvasLike = str | Seq[int | None]
"""Token ids with None where something is to be filled in, or text in which `<|mask|>` stands for
one such place and `<|mask:8|>` for eight."""
FinishReason = Literal["stop", "length"]
"""stop: an end token, a stop string or a complete guide. length: max_new_tokens were made."""


@dataclass(frozen=True, kw_only=True)
class Guide:
    """A constraint that the generated text must satisfy. Use the class methods to make one."""

    kind: Literal["json_schema", "regex", "lark", "choices"]
    value: str
    """The schema or the list of choices as JSON, the regex, or the Lark grammar."""

    def __post_init__(self) -> None:
        if not isinstance(self.value, str):
            raise GuideError(f"a {self.kind} guide is text, got {_brief(self.value)}.")

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> Guide:
        """JSON that conforms to a schema, given as a mapping or as text."""
        try:
            if isinstance(schema, str):
                schema = json.loads(schema)
            text = json.dumps(schema)
        except (ValueError, TypeError, RecursionError) as error:
            raise GuideError(f"the JSON Schema is not valid JSON: {error}.") from None
        if not isinstance(schema, Mapping):
            raise GuideError(f"a JSON Schema is an object, got {_brief(schema)}.")
        return cls(kind="json_schema", value=text)

    @classmethod
    def regex(cls, pattern: str) -> Guide:
        """Text that a regular expression (Rust syntax, no look-around) matches in full."""
        return cls(kind="regex", value=pattern)

    @classmethod
    def lark(cls, grammar: str) -> Guide:
        """Text in the language of a Lark grammar."""
        return cls(kind="lark", value=grammar)

    @classmethod
    def choices(cls, options: Seq[str]) -> Guide:
        """Exactly one of several texts."""
        if not _is_list(options, str) or not options or "" in options:
            raise GuideError(f"choices must be one or more non-empty texts, got {_brief(options)}.")
        return cls(kind="choices", value=json.dumps(list(options)))


def _is_list(value: object, kind: type) -> bool:
    """Is it a list (no text, no bytes) of `kind` alone? True and False are no integers."""
    return (
        isinstance(value, Seq)
        and not isinstance(value, str | bytes)
        and all(isinstance(item, kind) and not isinstance(item, bool) for item in value)
    )


def _brief(value: object) -> str:
    """At most one line of a value's repr."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass(frozen=True, kw_only=True)
class Request:
    """One thing to generate, and every control over how. Also the sampling controls of a row."""

    prompt: Prompt
    method: Annotated[str, "decoding method; `anyorder methods` lists them"] = "autoregressive"
    options: Mapping[str, object] = field(default_factory=dict)
    """The method's own options."""
    canvas: CanvasLike | None = None
    """The new text with gaps, for methods that fill them in any order. Its fixed tokens stay as
    they are and are part of the answer, which is as long as the canvas unless it ends behind them;
    they count as generated for penalties, n-gram bans and `min_new_tokens`. None: all is open."""
    max_new_tokens: Annotated[
        int | None,
        Range(0),
        "most tokens to generate; none: 256, or what the context has room for",
    ] = None
    min_new_tokens: Annotated[int, Range(0), "end tokens are banned before this many"] = 0
    n: Annotated[int, Range(1, 1024), "number of alternative texts"] = 1
    seed: Annotated[int, Range(0, 2**63 - 1), "same request, same seed, same tokens"] = 0

    temperature: Annotated[float, Range(0, 1000), "0 is greedy; 1 the model's distribution"] = 0.0
    top_k: Annotated[int, Range(0), "keep the k likeliest tokens; 0 keeps all"] = 0
    top_p: Annotated[float, Range(0, 1), "keep the likeliest tokens that add up to p"] = 1.0
    min_p: Annotated[float, Range(0, 1), "drop tokens under this share of the likeliest's"] = 0.0
    typical_p: Annotated[
        float, Range(0, 1), "keep the tokens of most typical surprise that add up to p"
    ] = 1.0
    repetition_penalty: Annotated[
        float, Range(1e-3, 1000), "divide scores of tokens already in prompt or text; 1 is off"
    ] = 1.0
    presence_penalty: Annotated[
        float, Range(-100, 100), "subtract from scores of tokens already generated"
    ] = 0.0
    frequency_penalty: Annotated[
        float, Range(-100, 100), "subtract per time a token was already generated"
    ] = 0.0
    no_repeat_ngram: Annotated[int, Range(0), "ban repeating any n-gram; 0 is off"] = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids."""
    bad_words: Seq[str] = ()
    """Texts whose tokens may not be generated, at the start of a word or inside one."""
    stop: Seq[str] = ()
    """Generation ends before the first of these strings; the text does not contain it."""
    stop_tokens: Seq[int] = ()
    """Further ids that end the text, besides the model's own end tokens."""
    ignore_end: Annotated[bool, "go on after end tokens"] = False
    guide: Guide | None = None
    """A constraint on the text: JSON Schema, regex, Lark grammar or choices."""

    guidance_scale: Annotated[
        float, Range(0, 100), "classifier-free guidance: >1 moves away from the negative prompt"
    ] = 1.0
    negative_prompt: Prompt | None = None
    """What to move away from; None: the prompt's last token alone."""
    contrast_role: Annotated[
        str | None,
        "contrastive decoding: move away from this role's model, such as draft, instead",
    ] = None
    contrast_floor: Annotated[
        float, Range(0, 1), "with guidance: drop tokens under this share of the likeliest's"
    ] = 0.0

    logprobs: Annotated[int, Range(0, 100), "also report this many alternatives per token"] = 0
    prompt_logprobs: Annotated[bool, "also report log-probabilities of the prompt"] = False
    embedding: Annotated[
        Literal["none", "mean", "last"],
        "also report the prompt as a vector: the mean of its final hidden states, or the last",
    ] = "none"
    history: Annotated[bool, "also report tokens that stood on the canvas but were not final"] = (
        False
    )
    prefix_cache: Annotated[bool, "share cached prefixes with other requests"] = True
    cache_salt: Annotated[str, "share cached prefixes only among requests of equal salt"] = ""

    def __post_init__(self) -> None:
        validate(self)
        if self.max_new_tokens == 0 and not self.prompt_logprobs and self.embedding == "none":
            raise InvalidRequest(
                "max_new_tokens is 0, so there is nothing to do; ask for at least 1, or for "
                "prompt_logprobs or an embedding."
            )
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise InvalidRequest(
                f"min_new_tokens is {self.min_new_tokens}, more than max_new_tokens "
                f"({self.max_new_tokens})."
            )
        for name in ("prompt", "negative_prompt"):
            prompt = getattr(self, name)
            if not (
                isinstance(prompt, str)
                or _is_list(prompt, int)
                or _is_list(prompt, Mapping)
                or (prompt is None and name == "negative_prompt")
            ):
                raise InvalidRequest(
                    f"{name} must be text, token ids or chat messages, got {_brief(prompt)}."
                )
        canvas = self.canvas
        if isinstance(canvas, Seq) and not isinstance(canvas, str | bytes):
            canvas = "" if _is_list([t for t in canvas if t is not None], int) else canvas
        if not (canvas is None or isinstance(canvas, str)):
            raise InvalidRequest(
                "canvas must be text with <|mask|> in it, or token ids with None where something "
                f"is to be filled in, got {_brief(self.canvas)}."
            )
        for name in ("bad_words", "stop"):
            texts = getattr(self, name)
            if not _is_list(texts, str) or "" in texts:
                raise InvalidRequest(
                    f"{name} must be a list of non-empty texts, got {_brief(texts)}."
                )
        if not _is_list(self.stop_tokens, int):
            raise InvalidRequest(
                f"stop_tokens must be a list of ids, got {_brief(self.stop_tokens)}."
            )
        for name in ("options", "logit_bias"):
            value = getattr(self, name)
            if not isinstance(value, Mapping):
                raise InvalidRequest(f"{name} must be a mapping, got {_brief(value)}.")
        for token, bias in self.logit_bias.items():
            # Minus infinity bans a token, plus infinity forces it.
            if type(token) is not int or type(bias) not in (int, float) or math.isnan(bias):
                raise InvalidRequest(
                    f"logit_bias maps token ids to numbers, got {token!r}: {bias!r}."
                )
        if self.guide is not None and not isinstance(self.guide, Guide):
            raise InvalidRequest(
                "guide must come from Guide.json_schema, regex, lark or choices, got "
                f"{_brief(self.guide)}."
            )
        if self.guide is not None and self.ignore_end:
            raise InvalidRequest("ignore_end and guide exclude each other: a guide ends the text.")
        if self.negative_prompt is not None and self.guidance_scale == 1.0:
            raise InvalidRequest("negative_prompt does nothing at guidance_scale 1; set a scale.")
        if (self.contrast_role or self.contrast_floor) and self.guidance_scale == 1.0:
            raise InvalidRequest("a contrast does nothing at guidance_scale 1; set a scale.")


# ------------------------------------------------------------------------------- what comes back
@dataclass(frozen=True, kw_only=True)
class Report:
    """What an answer cost, all its choices together."""

    num_prompt_tokens: int
    num_new_tokens: int
    num_forward_passes: int
    """Passes of any model that this request took part in."""
    tokens_per_pass: float
    """num_new_tokens / num_forward_passes."""
    num_cached_tokens: int
    """Prompt tokens whose keys and values came from the prefix cache."""
    queue_seconds: float
    prefill_seconds: float
    """From admission to the first answer of the model."""
    decode_seconds: float
    num_run_tokens: int = 0
    """Tokens that those passes ran for it, all roles together: the prompt, guesses, a whole canvas
    each time it is run, and what is replayed."""
    num_preemptions: int = 0
    """How often the request lost its pages and was replayed."""
    mean_accepted_length: float | None = None
    """Speculation only: tokens made final per draft check, the one drawn after the accepted ones
    included; drafts that were empty count."""
    passes_by_role: Mapping[str, int] = field(default_factory=dict)
    """num_forward_passes by role; `target[:10]` are passes through the target's lower 10 layers."""
    exact: bool = True
    """False: an approximate cache or acceptance rule changed the distribution."""
    notes: tuple[str, ...] = ()
    """What else there is to say about how the answer was made, in sentences."""


@dataclass(frozen=True, kw_only=True)
class TraceEntry:
    """How one new token came about."""

    token: int
    text: str
    step: int
    """The pass (1, 2, ... of this request) in which it was made final; 0: the request fixed it."""
    probability: float
    """Its probability in that pass under the model's distribution."""
    alternatives: tuple[tuple[int, float], ...] = ()
    """(token, probability) of the likeliest, with `Request.logprobs`."""
    drafted: bool = False
    """Was it proposed by a drafter and accepted?"""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A token that stood at a place of the new text for a while, or was taken back."""

    step: int
    """The pass after which it stood there."""
    place: int
    token: int | None
    """None: the place was opened again."""
    text: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One generated text."""

    text: str
    tokens: list[int]
    """New tokens, the end token included where one was made."""
    logprobs: list[float]
    """Log-probability of every new token under the model's distribution."""
    finish_reason: FinishReason
    score: float | None = None
    """A search's score (beam search: summed log-probabilities over length penalty)."""
    trace: tuple[TraceEntry, ...] = ()
    history: tuple[Preview, ...] = ()
    """What was not final, in order, with `Request.history`."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """An answer: `n` choices, best first where there is a score, and what they cost."""

    choices: tuple[Choice, ...]
    method: str
    report: Report
    prompt_tokens: list[int]
    prompt_logprobs: list[float] | None = None
    """One per prompt token after the first; None if not asked for."""
    prompt_alternatives: list[tuple[tuple[int, float], ...]] | None = None
    """What else was likely there, (id, log-probability), as many as `Request.logprobs` says."""
    embedding: list[float] | None = None
    """The prompt as a vector; None if not asked for."""

    @property
    def text(self) -> str:
        """Text of the first choice."""
        return self.choices[0].text

    @property
    def tokens(self) -> list[int]:
        """New tokens of the first choice."""
        return self.choices[0].tokens

    @property
    def logprobs(self) -> list[float]:
        """Log-probabilities of the first choice's tokens."""
        return self.choices[0].logprobs

    @property
    def finish_reason(self) -> FinishReason:
        """Why the first choice ended."""
        return self.choices[0].finish_reason

    @property
    def trace(self) -> tuple[TraceEntry, ...]:
        """How the first choice's tokens came about."""
        return self.choices[0].trace

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the first choice's fields on top, all choices under "choices"."""
        data = dataclasses.asdict(self)
        return {**data["choices"][0], **data}


@dataclass(frozen=True, kw_only=True)
class Event:
    """A piece of final text, or the end."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    choice: int = 0
    finish_reason: FinishReason | None = None
    """Set on a choice's last event."""
    completion: Completion | None = None
    """Set on the request's last event."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Chain-rule score of a text."""

    tokens: list[int]
    logprobs: list[float]
    """log p(token i | tokens before), for every token after the first."""
    report: Report

    @property
    def total(self) -> float:
        """Log-probability of the text given its first token, nats."""
        return sum(self.logprobs)
