"""Log-probabilities of a text by the chain rule: one for every token after the first."""

from __future__ import annotations

import argparse
import json
import math

from anyorder.cli.files import text_argument
from anyorder.cli.model_flags import add_model_flags, open_engine
from anyorder.cli.terminal import visible
from anyorder.core.errors import InvalidRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The text and the form of the answer."""
    add = parser.add_argument
    add("text", metavar="TEXT", nargs="?", help='the text to score; "-" or none: stdin')
    add("--tokens", action="store_true", help="also list every token with its log-probability")
    add("--json", action="store_true", help="print one JSON object")
    add_model_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Score and print."""
    text = text_argument(arguments.text, "text")
    engine = open_engine(arguments)
    score = engine.score(text)
    if not score.logprobs:
        raise InvalidRequest("the text is a single token; a score needs at least two.")
    assert engine.tokenizer is not None, "a text was encoded without a tokenizer"
    texts = [engine.tokenizer.token_text(token) for token in score.tokens]
    mean = score.total / len(score.logprobs)
    if arguments.json:
        data = {
            "tokens": score.tokens,
            "texts": texts,
            "logprobs": score.logprobs,
            "total": score.total,
            "mean": mean,
            "perplexity": math.exp(-mean),
            "num_forward_passes": score.report.num_forward_passes,
        }
        print(json.dumps(data, ensure_ascii=False))
        return 0
    if arguments.tokens:
        for token, shown, logprob in zip(
            score.tokens, texts, ["", *(f"{value:.4f}" for value in score.logprobs)], strict=True
        ):
            print(f"{logprob:>10}  {token:>6}  {visible(shown)}")
    print(f"total log-probability  {score.total:.4f}")
    print(f"mean per token         {mean:.4f} over {len(score.logprobs)} tokens")
    print(f"perplexity             {math.exp(-mean):.4f}")
    return 0
