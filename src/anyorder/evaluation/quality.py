"""Samples judged without references: diversity, repetition, and how a second model finds them.

- distinct-n (Li et al., arXiv 1510.03055): different n-grams of all samples over all their n-grams.
- rep-n (Welleck et al., arXiv 1908.04319): 1 minus different n-grams over n-grams within a sample,
  averaged over samples.
- self-BLEU (Zhu et al., Texygen, arXiv 1802.01886): BLEU-4 of each sample against all the others.
- compression: bytes of all samples over what zlib makes of them; loops compress best.
- entropy of a sample's own word frequencies in nats, averaged over samples.
- copied: share of the samples' 8-grams that some other texts (the training data) hold as well.
- generative perplexity: exp of the mean negative log-likelihood per token under a judge.

None of these alone says that samples are good: n-gram diversity is highest for shuffled words, and
a judge likes nothing better than one phrase again and again. Numbers under different judges, or of
samples of different length, do not compare. Words are runs of letters and digits, or single other
signs, so that all but the judge's numbers are free of any tokenizer. `mauve` compares samples
with real texts.
"""

from __future__ import annotations

import itertools
import math
import re
import statistics
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from anyorder.core.request import Request
from anyorder.engine.engine import Engine
from anyorder.evaluation.generation import answers

_BLEU_ORDER = 4
_SELF_BLEU_SAMPLES = 200


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A generated text and what it was generated from."""

    text: str
    prompt: str = ""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Of some samples. Nothing is said (None) about what they are too short or too few for."""

    num_samples: int
    num_words: float
    """Mean length."""
    entropy: float | None
    distinct_1: float | None
    distinct_2: float | None
    rep_4: float | None
    compression: float
    self_bleu: float | None
    """0 to 100."""


def quality(samples: Seq[Sample]) -> Quality:
    """Everything that takes no judge."""
    texts = [words(sample.text) for sample in samples]
    entropies = [entropy(text) for text in texts if text]
    repetitions = [repetition(text, 4) for text in texts if len(text) >= 4]
    return Quality(
        num_samples=len(texts),
        num_words=statistics.fmean(map(len, texts)),
        entropy=statistics.fmean(entropies) if entropies else None,
        distinct_1=distinct(texts, 1),
        distinct_2=distinct(texts, 2),
        rep_4=statistics.fmean(repetitions) if repetitions else None,
        compression=compression(sample.text for sample in samples),
        self_bleu=self_bleu(texts[:_SELF_BLEU_SAMPLES]) if len(texts) > 1 else None,
    )


def words(text: str) -> list[str]:
    """What the measures count."""
    return re.findall(r"\w+|[^\w\s]", text)


def entropy(text: Seq[str]) -> float:
    """Of the frequencies of a text's words, nats."""
    counts = Counter(text)
    return sum(-n / len(text) * math.log(n / len(text)) for n in counts.values())


def distinct(texts: Seq[Seq[str]], order: int) -> float | None:
    """Different n-grams over all n-grams, of all texts together."""
    found = [gram for text in texts for gram in _ngrams(text, order)]
    return len(set(found)) / len(found) if found else None


def repetition(text: Seq[str], order: int) -> float:
    """1 minus different n-grams over n-grams of one text, which has at least one."""
    found = _ngrams(text, order)
    return 1.0 - len(set(found)) / len(found)


def compression(texts: Iterable[str]) -> float:
    """How many times shorter zlib makes the texts, one to a line."""
    data = "\n".join(texts).encode()
    return len(data) / len(zlib.compress(data, level=9))


def copied(samples: Iterable[str], texts: Iterable[str], order: int = 8) -> float | None:
    """The share of the samples' n-grams that the texts have too; None if there are none."""
    grams = Counter(gram for sample in samples for gram in _ngrams(words(sample), order))
    known: set[tuple[str, ...]] = set()
    for text in texts:
        known.update(gram for gram in _ngrams(words(text), order) if gram in grams)
    return sum(grams[gram] for gram in known) / grams.total() if grams else None


def self_bleu(texts: Seq[Seq[str]]) -> float:
    """The mean BLEU of each text with all others as its references; orders beyond a text's length
    are left out, and an order without a match counts as half a match, then a quarter, and so on."""
    counts = [
        [Counter(_ngrams(text, order)) for order in range(1, _BLEU_ORDER + 1)] for text in texts
    ]
    # How often an n-gram may match is its highest count in any *other* text: that of the text which
    # has most of it, or, for that text itself, that of the second.
    best: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for index, orders in enumerate(counts):
        for gram, count in itertools.chain.from_iterable(c.items() for c in orders):
            first, owner, second = best.get(gram, (0, -1, 0))
            if count > first:
                best[gram] = (count, index, first)
            elif count > second:
                best[gram] = (first, owner, count)
    lengths = sorted(map(len, texts))
    scores = []
    for index, (text, orders) in enumerate(zip(texts, counts, strict=True)):
        others = lengths.copy()
        others.remove(len(text))
        closest = min(others, key=lambda length: (abs(length - len(text)), length))
        scores.append(_bleu(index, orders, best, len(text), closest))
    return statistics.fmean(scores)


def _bleu(
    index: int,
    orders: Seq[Counter[tuple[str, ...]]],
    best: dict[tuple[str, ...], tuple[int, int, int]],
    length: int,
    closest: int,
) -> float:
    logs, halves, any_match = [], 1.0, False
    for order in orders:
        total = order.total()
        if not total:
            break
        matches = 0.0
        for gram, count in order.items():
            first, owner, second = best[gram]
            matches += min(count, second if owner == index else first)
        any_match |= matches > 0
        if not matches:
            halves /= 2
            matches = halves
        logs.append(math.log(matches / total))
    if not any_match:
        return 0.0
    shortness = min(0.0, 1.0 - closest / length)
    return 100 * math.exp(shortness + statistics.fmean(logs))


def _ngrams(text: Seq[str], order: int) -> list[tuple[str, ...]]:
    return [tuple(text[i : i + order]) for i in range(len(text) - order + 1)]


# ------------------------------------------------------------------------------------------- judge
@dataclass(frozen=True, kw_only=True)
class Judgement:
    """How a model finds samples."""

    perplexity: float
    """Per token of the samples, given their prompts; the first token of all is never asked for."""
    num_tokens: int


def judge(
    engine: Engine,
    samples: Seq[Sample],
    progress: Callable[[str, int, int], None] | None = None,
) -> Judgement | None:
    """Score what follows the prompts; None if no sample has a token to score."""
    tokenizer = engine.tokenizer
    assert tokenizer is not None, "a judge reads text"
    longest = engine.abilities.context_length
    requests, starts = [], []
    for sample in samples:
        tokens = tokenizer.encode(sample.prompt + sample.text)[:longest]
        prompt = tokenizer.encode(sample.prompt) if sample.prompt else []
        pairs = enumerate(zip(prompt, tokens, strict=False))
        start = next((i for i, (a, b) in pairs if a != b), min(len(prompt), len(tokens)))
        start = max(start, 1)
        if len(tokens) > start:
            requests.append(Request(prompt=tokens, max_new_tokens=0, prompt_logprobs=True))
            starts.append(start)
    total, num_tokens = 0.0, 0
    found = zip(starts, answers(engine, requests), strict=True)
    for done, (start, answer) in enumerate(found, 1):
        logprobs = answer.completion.prompt_logprobs
        assert logprobs is not None, "asked for"
        total -= sum(logprobs[start - 1 :])
        num_tokens += len(logprobs) - (start - 1)
        if progress is not None:
            progress("judging", done, len(requests))
    if not num_tokens:
        return None
    return Judgement(perplexity=math.exp(total / num_tokens), num_tokens=num_tokens)
