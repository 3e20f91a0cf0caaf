"""Speculation on the default model: `python -m benchmarks.speculation`, beside transformers.

Every way of decoding writes greedy answers to the same prompts, in turns within one process and one
run: plain decoding here is the unit, so what else the machine does hits numerator and denominator
alike. Three kinds of text: answers that copy from their prompt, code, open chat. In float32 every
answer must be the one of plain decoding, token for token, or the run has failed; in bfloat16 a pass
over more rows rounds otherwise, and equal answers are counted.

The draft model, for both libraries, is the target's own lower layers (`--draft-layers`), since no
smaller model with this tokenizer is published in a form that can be fetched here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyorder.model import catalog
from benchmarks.report import machine
from benchmarks.texts import KINDS

MODEL = "smollm2-135m-instruct"
PLAIN = "autoregressive"
OURS: Mapping[str, tuple[str, dict[str, object]]] = {
    PLAIN: ("autoregressive", {}),
    "prompt lookup": ("speculative", {"drafter": "prompt_lookup"}),
    "suffix automaton": ("speculative", {"drafter": "suffix_automaton"}),
    "early exit": ("speculative", {"drafter": "early_exit"}),
    "draft model": ("speculative", {"drafter": "draft_model"}),
    "jacobi": ("jacobi", {}),
    "lookahead": ("lookahead", {}),
}
THEIRS = ("transformers: plain", "transformers: prompt lookup", "transformers: assisted")


@dataclass(kw_only=True)
class Sample:
    """One side's answers to the prompts of one kind in one round."""

    seconds: float = 0.0
    decode_seconds: float = 0.0
    """From the first token on; `seconds` are those of the whole answer."""
    num_new: int = 0
    num_passes: int = 0
    """Of the target model."""
    checks: list[float] = field(default_factory=list)
    """Mean accepted length of each answer."""
    texts: list[list[int]] = field(default_factory=list)
    notes: int = 0
    """Answers for which speculation was reported not to pay."""


Answer = Callable[[list[int], int], Sample]
"""Answers one prompt with so many tokens at most."""


def ours(engine: Any, method: str, options: dict[str, object]) -> Answer:
    """A way of decoding of this library."""
    import anyorder

    def answer(prompt: list[int], num_new: int) -> Sample:
        request = anyorder.Request(
            prompt=prompt,
            method=method,
            options=options,
            max_new_tokens=num_new,
            prefix_cache=False,
        )
        began = time.perf_counter()
        completion = engine.generate(request)
        seconds = time.perf_counter() - began
        report = completion.report
        accepted = report.mean_accepted_length
        return Sample(
            seconds=seconds,
            decode_seconds=report.decode_seconds,
            num_new=len(completion.tokens),
            num_passes=report.passes_by_role["target"],
            checks=[] if accepted is None else [accepted],
            texts=[completion.tokens],
            notes=len(report.notes),
        )

    return answer


def theirs(model: Any, **options: Any) -> Answer:
    """A way of decoding of transformers."""
    import torch

    passes: list[float] = []
    model.register_forward_hook(lambda *_: passes.append(time.perf_counter()))

    def answer(prompt: list[int], num_new: int) -> Sample:
        ids = torch.tensor([prompt])
        passes.clear()
        began = time.perf_counter()
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=num_new,
            **options,
        )
        ended = time.perf_counter()
        tokens = made[0, len(prompt) :].tolist()
        return Sample(
            seconds=ended - began,
            decode_seconds=ended - passes[0],
            num_new=len(tokens),
            num_passes=len(passes),
            texts=[tokens],
        )

    return answer


def add(total: Sample, one: Sample) -> None:
    """Add one answer to a kind's sample."""
    total.seconds += one.seconds
    total.decode_seconds += one.decode_seconds
    total.num_new += one.num_new
    total.num_passes += one.num_passes
    total.checks += one.checks
    total.texts += one.texts
    total.notes += one.notes


def measure(
    sides: Mapping[str, Answer],
    prompts: Mapping[str, Sequence[list[int]]],
    *,
    num_new: int,
    rounds: int,
    tell: Callable[[str], None],
) -> dict[str, dict[str, list[Sample]]]:
    """Samples by kind of text and side, one a round; the first round only warms up."""
    samples: dict[str, dict[str, list[Sample]]] = {
        kind: {name: [] for name in sides} for kind in prompts
    }
    names = list(sides)
    for number in range(rounds + 1):
        for kind, asked in prompts.items():
            # In a warm-up a single prompt is enough.
            asked = asked if number else asked[:1]
            totals = {name: Sample() for name in names}
            for index, prompt in enumerate(asked):
                turn = (number + index) % len(names)
                for name in [*names[turn:], *names[:turn]]:
                    tell(f"round {number} of {rounds}: {kind} {index + 1}: {name}")
                    add(totals[name], sides[name](prompt, num_new))
            if number:
                for name, total in totals.items():
                    samples[kind][name].append(total)
                    rate = total.num_new / total.seconds
                    ratio = totals[PLAIN].seconds / total.seconds
                    tell(f"round {number}, {kind}, {name}: {rate:.1f} tok/s, {ratio:.2f}")
    return samples


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """Median and extremes of the rounds' ratios."""
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def rows(samples: Mapping[str, Mapping[str, Sequence[Sample]]]) -> list[dict[str, Any]]:
    """One row of figures per kind and side."""
    found = []
    for kind, sides in samples.items():
        plain = sides[PLAIN]
        for name, own in sides.items():
            rounds = list(zip(plain, own, strict=True))
            decode_ratios = [p.decode_seconds / s.decode_seconds for p, s in rounds]
            checks = [value for sample in own for value in sample.checks]
            pairs = [(a, b) for p, s in rounds for a, b in zip(p.texts, s.texts, strict=True)]
            found.append(
                {
                    "text": kind,
                    "decoding": name,
                    "tokens_per_pass": sum(s.num_new for s in own) / sum(s.num_passes for s in own),
                    "accepted_length": statistics.mean(checks) if checks else None,
                    "tokens_per_second": statistics.median(s.num_new / s.seconds for s in own),
                    "ratio": spread([p.seconds / s.seconds for p, s in rounds]),
                    "decode_ratio": spread(decode_ratios),
                    "equal": sum(a == b for a, b in pairs),
                    "answers": len(pairs),
                    "did_not_pay": sum(s.notes for s in own),
                }
            )
    return found


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| text | decoding | tokens per pass | accepted | tok/s | wall clock | after the prompt "
        "| same answers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        accepted = row["accepted_length"]
        ratios = [
            f"**{ratio['median']:.2f}** [{ratio['least']:.2f}-{ratio['most']:.2f}]"
            for ratio in (row["ratio"], row["decode_ratio"])
        ]
        lines.append(
            f"| {row['text']} | {row['decoding']} | {row['tokens_per_pass']:.2f} | "
            f"{'' if accepted is None else f'{accepted:.2f}'} | {row['tokens_per_second']:.1f} | "
            f"{ratios[0]} | {ratios[1]} | "
            f"{row['equal']}/{row['answers']} |"
        )
    where = ", ".join(f"{key.replace('num_', '')} {value}" for key, value in machine().items())
    lines += [
        "",
        "wall clock: of the whole answer, reading the prompt included, against plain decoding here "
        "= 1; higher is faster; median [least-most]. After the prompt: from the first token on.",
        where,
    ]
    return "\n".join(lines)


def open_sides(
    dtype: str, draft_layers: int, folder: Path, wanted: Sequence[str]
) -> dict[str, Answer]:
    """Load both libraries' models."""
    import copy

    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    import anyorder
    from anyorder.model.loaded import load
    from benchmarks.draft_models import lower_layers

    logging.set_verbosity_error()
    reference: Any = AutoModelForCausalLM.from_pretrained(folder / dtype, dtype=dtype).eval()
    small: Any = copy.deepcopy(reference)
    small.model.layers = small.model.layers[:draft_layers]
    small.config.num_hidden_layers = draft_layers
    target = load(MODEL, dtype=dtype)
    engine = anyorder.Engine(target, draft=lower_layers(target, draft_layers))
    ends = sorted(engine.abilities.end_tokens)
    for model in (reference, small):
        model.generation_config.eos_token_id = ends
        model.generation_config.pad_token_id = ends[0]
    sides = {name: ours(engine, *OURS[name]) for name in OURS}
    sides |= dict(
        zip(
            THEIRS,
            (
                theirs(reference),
                theirs(reference, prompt_lookup_num_tokens=10),
                theirs(reference, assistant_model=small),
            ),
            strict=True,
        )
    )
    torch.set_grad_enabled(False)
    return {name: side for name, side in sides.items() if not wanted or name in (PLAIN, *wanted)}


def main(arguments: list[str]) -> int:
    """Measure and print; 1 if a float32 answer differs from plain decoding's."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speculation", description=__doc__)
    add_argument = parser.add_argument
    add_argument("sides", nargs="*", metavar="SIDE", help=", ".join((*OURS, *THEIRS)))
    add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    add_argument("--rounds", type=int, default=3, help="timed rounds (default: 3)")
    add_argument("--prompts", type=int, default=6, help="of each kind, at most 6 (default: 6)")
    add_argument("--new", type=int, default=96, help="tokens per answer (default: 96)")
    add_argument("--draft-layers", type=int, default=10, help="of the draft model (default: 10)")
    add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.sides if name not in (*OURS, *THEIRS)]
    if unknown:
        parser.error(f"unknown side {unknown[0]!r}; sides: {', '.join((*OURS, *THEIRS))}.")

    def tell(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="anyorder-benchmark-") as name:
        tell("writing the weights as safetensors for transformers")
        file = catalog.resolve(MODEL).path
        subprocess.run(
            [sys.executable, "-m", "benchmarks.weights", str(file), name],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        sides = open_sides(options.dtype, options.draft_layers, Path(name), options.sides)
        from anyorder.model.gguf import GGUFFile
        from anyorder.model.tokenizer import Tokenizer

        tokenizer = Tokenizer.from_gguf(GGUFFile(file).metadata)
        prompts = {
            kind: [
                tokenizer.encode(text)
                if isinstance(text, str)
                else tokenizer.apply_chat_template(text)
                for text in texts[: options.prompts]
            ]
            for kind, texts in KINDS.items()
        }
        samples = measure(sides, prompts, num_new=options.new, rounds=options.rounds, tell=tell)
    found = rows(samples)
    print(json.dumps(found, indent=2) if options.json else table(found))
    wrong = [row for row in found if row["equal"] < row["answers"]]
    return int(options.dtype == "float32" and bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
