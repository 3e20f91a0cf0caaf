"""Greedy texts of every speculative way of decoding against plain decoding's, on a hundred prompts.

`python -m benchmarks.identity` for float32, where every text must be the same, token for token;
`--dtype bfloat16` and `--quantize int4` for lower precision, where passes that are computed
otherwise may round a near-tie to the other side. For a text that differs, the gap is told: by how
many nats plain decoding preferred its own token to the other one, at the first place where they
differ.

With the package's compiled kernels, passes of up to 128 rows give every row the same bits whatever
rows it comes with; `--in-flight` says how many texts share a pass, and so on which side of that
limit passes are. Prompts are run beforehand, alike for all sides.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.texts import hundred

if TYPE_CHECKING:
    from anyorder.model.loaded import LoadedModel

MODEL = "smollm2-135m-instruct"
_ALTERNATIVES = 20
RANDOM: Mapping[str, dict[str, object]] = {
    "medusa": {"nodes": 6, "top": 2},
    "eagle": {"nodes": 6, "top": 2},
    "block_drafter": {},
}
"""Drafters whose networks are random here: they propose nonsense, which must change nothing."""
SIDES: Mapping[str, tuple[str, dict[str, object]]] = {
    **{
        name: ("speculative", {"drafter": name, "adaptive": False, "length": 4})
        for name in ("prompt_lookup", "suffix_automaton", "draft_model", "early_exit")
    },
    "draft_model, tree": (
        "speculative",
        {
            "drafter": {"name": "draft_model", "branches": "3,2"},
            "adaptive": False,
            "length": 2,
        },
    ),
    **{
        name: (
            "speculative",
            {"drafter": {"name": name, **options}, "adaptive": False, "length": 3},
        )
        for name, options in RANDOM.items()
    },
    "jacobi": ("jacobi", {"size": 5, "adaptive": False}),
    "lookahead": ("lookahead", {"window": 3, "ngram": 3, "guesses": 3, "adaptive": False}),
    "blockwise": ("blockwise", {}),
}
"""Short drafts, all of them made whether they pay or not."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One way of decoding against plain decoding."""

    name: str
    same: int
    texts: int
    gaps: tuple[float, ...]
    """One per text that differs, nats."""
    accepted: float


def compare(
    engines: Mapping[str, Any],
    prompts: Sequence[str],
    num_new: int,
    names: Sequence[str],
    in_flight: int,
) -> list[Line]:
    """Every side's texts beside plain decoding's. `engines` are by draft model; sides that are not
    listed use the one called "draft_model"."""
    import anyorder

    def write(
        engine: Any, method: str, options: dict[str, object], *, length: int, logprobs: int = 0
    ) -> list[Any]:
        requests = [
            anyorder.Request(
                prompt=prompt,
                method=method,
                options=options,
                max_new_tokens=length,
                logprobs=logprobs,
            )
            for prompt in prompts
        ]
        parts = (requests[i : i + in_flight] for i in range(0, len(requests), in_flight))
        return [answer for part in parts for answer in engine.generate(part)]

    default = engines["draft_model"]
    for engine in {id(engine): engine for engine in engines.values()}.values():
        write(engine, "autoregressive", {}, length=1)
    plain = write(default, "autoregressive", {}, length=num_new, logprobs=_ALTERNATIVES)
    lines = []
    for name in names:
        print(name, file=sys.stderr, flush=True)
        made = write(engines.get(name, default), *SIDES[name], length=num_new)
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


def open_engines(target: LoadedModel, draft_layers: int) -> dict[str, Any]:
    """An engine for every draft model; all share the target."""
    import anyorder
    from benchmarks.draft_models import lower_layers, random_drafter

    size = {"cache_tokens": 32768}
    engines = {
        "draft_model": anyorder.Engine(target, draft=lower_layers(target, draft_layers), **size)
    }
    with tempfile.TemporaryDirectory(prefix="anyorder-benchmark-") as folder:
        for name in RANDOM:
            drafter = random_drafter(name, target, Path(folder) / name)
            engines[name] = anyorder.Engine(target, draft=drafter, **size)
    return {**engines, "blockwise": engines["medusa"]}


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
    parser.add_argument("--quantize", choices=("int8", "int4"), help="weights of so many bits")
    parser.add_argument("--in-flight", type=int, default=6, help="texts at a time (default: 6)")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.sides if name not in SIDES]
    if unknown:
        parser.error(f"unknown side {unknown[0]!r}; sides: {', '.join(SIDES)}.")
    from anyorder.model.loaded import load

    target = load(MODEL, dtype=options.dtype, quantize=options.quantize)
    engines = open_engines(target, options.draft_layers)
    prompts = hundred()[:: max(1, 100 // options.prompts)][: options.prompts]
    names = options.sides or list(SIDES)
    lines = compare(engines, prompts, options.new, names, options.in_flight)
    print(table(lines, options.quantize or options.dtype))
    return int(options.dtype == "float32" and any(line.gaps for line in lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
