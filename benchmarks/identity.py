"""Greedy texts of every speculative way of decoding against plain decoding's, on a hundred prompts.

`python -m benchmarks.identity` for float32, where every text must be the same, token for token;
`--dtype bfloat16` for lower precision, where a pass over several rows may round a near-tie to the
other side. For a text that differs, the gap is told: by how many nats plain decoding preferred its
own token to the other one, at the first place where they differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, log
from typing import Any

from benchmarks.texts import hundred

MODEL = "smollm2-135m-instruct"
_ALTERNATIVES = 20
SIDES: Mapping[str, tuple[str, dict[str, object]]] = {
    "prompt_lookup": ("speculative", {"drafter": "prompt_lookup", "adaptive": False}),
    "suffix_automaton": ("speculative", {"drafter": "suffix_automaton", "adaptive": False}),
    "draft_model": ("speculative", {"drafter": "draft_model", "adaptive": False, "length": 4}),
    "draft_model, tree": (
        "speculative",
        {
            "drafter": {"name": "draft_model", "branches": "3,2"},
            "adaptive": False,
            "length": 3,
        },
    ),
    "early_exit": ("speculative", {"drafter": "early_exit", "adaptive": False, "length": 4}),
    "jacobi": ("jacobi", {}),
    "lookahead": ("lookahead", {}),
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One way of decoding against plain decoding."""

    name: str
    same: int
    texts: int
    gaps: tuple[float, ...]
    """One per text that differs, nats."""
    accepted: float


def compare(engine: Any, prompts: Sequence[str], num_new: int, names: Sequence[str]) -> list[Line]:
    """Every side's texts beside plain decoding's."""
    import anyorder

    def requests(method: str, options: dict[str, object], logprobs: int = 0) -> list[Any]:
        return [
            anyorder.Request(
                prompt=prompt,
                method=method,
                options=options,
                max_new_tokens=num_new,
                logprobs=logprobs,
            )
            for prompt in prompts
        ]

    plain = engine.generate(requests("autoregressive", {}, _ALTERNATIVES))
    lines = []
    for name in names:
        print(name, file=sys.stderr, flush=True)
        made = engine.generate(requests(*SIDES[name]))
        gaps = [
            gap(one, other)
            for one, other in zip(plain, made, strict=True)
            if one.tokens != other.tokens
        ]
        lengths = [other.report.mean_accepted_length or 1.0 for other in made]
        lines.append(
            Line(
                name=name,
                same=len(made) - len(gaps),
                texts=len(made),
                gaps=tuple(gaps),
                accepted=sum(lengths) / len(lengths),
            )
        )
    return lines


def gap(plain: Any, other: Any) -> float:
    """Log-probability that plain decoding's token has over the other's, where they part."""
    pairs = zip(plain.trace, other.tokens, strict=False)
    entry, token = next((e, t) for e, t in pairs if e.token != t)
    alternatives = dict(entry.alternatives)
    if token not in alternatives:
        return inf
    return log(alternatives[entry.token] / alternatives[token])


def table(lines: Sequence[Line], dtype: str) -> str:
    """Markdown."""
    heads = (dtype, "same texts", "tokens per check", "gaps where they part, nats")
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for line in lines:
        gaps = ", ".join(f"{value:.3f}" for value in sorted(line.gaps)) or "none"
        rows.append(f"| {line.name} | {line.same}/{line.texts} | {line.accepted:.2f} | {gaps} |")
    return "\n".join(rows)


def main(arguments: list[str]) -> int:
    """Compare and print; 1 if a float32 text differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.identity", description=__doc__)
    parser.add_argument("sides", nargs="*", metavar="SIDE", help=", ".join(SIDES))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--prompts", type=int, default=100, help="at most 100 (default: 100)")
    parser.add_argument("--new", type=int, default=32, help="tokens per text (default: 32)")
    parser.add_argument("--draft-layers", type=int, default=10, help="of the draft model")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.sides if name not in SIDES]
    if unknown:
        parser.error(f"unknown side {unknown[0]!r}; sides: {', '.join(SIDES)}.")
    import anyorder
    from anyorder.model.loaded import load
    from benchmarks.truncated import lower_layers

    target = load(MODEL, dtype=options.dtype)
    engine = anyorder.Engine(target, draft=lower_layers(target, options.draft_layers))
    prompts = hundred()[:: max(1, 100 // options.prompts)][: options.prompts]
    lines = compare(engine, prompts, options.new, options.sides or list(SIDES))
    print(table(lines, options.dtype))
    return int(options.dtype == "float32" and any(line.gaps for line in lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
