"""What one client may ask for, and all of them together. Every limit is a flag of `serve`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from anyorder.core.options import Range, validate


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on requests. What exceeds one is refused with a message that names it."""

    max_body_bytes: Annotated[int, Range(1), "bytes of a request's body"] = 4 << 20
    max_prompts: Annotated[int, Range(1), "prompts or inputs of one request"] = 64
    max_prompt_tokens: Annotated[int, Range(1), "tokens of one prompt"] = 131_072
    max_tokens: Annotated[int, Range(1), "new tokens of one answer"] = 32_768
    max_choices: Annotated[int, Range(1, 1024), "n and best_of"] = 16
    max_logprobs: Annotated[int, Range(0, 100), "alternatives reported for a token"] = 20
    max_stops: Annotated[int, Range(0), "stop strings of a request"] = 16
    max_stop_length: Annotated[int, Range(1), "characters of one stop string"] = 256
    max_biases: Annotated[int, Range(0), "entries of logit_bias"] = 1024
    max_grammar_length: Annotated[
        int, Range(1), "characters of a schema, regex, grammar or list of choices"
    ] = 65_536
    max_in_flight: Annotated[int, Range(1), "answers being made or waiting, n counting n"] = 256
    max_queued_tokens: Annotated[int, Range(1), "prompt tokens that wait to be read"] = 262_144
    max_seconds: Annotated[float, Range(0.001), "wall time of one request"] = 600.0
    drain_seconds: Annotated[
        float, Range(0), "time that running requests get to finish once the server is told to stop"
    ] = 30.0

    def __post_init__(self) -> None:
        validate(self)
