"""Translations against references: BLEU and chrF as sacreBLEU computes them, with its signatures.

Post, arXiv 1804.08771: a BLEU without a signature cannot be compared with another. Beside them
stands what decoders in parallel are weak in: outputs of the wrong length, empty ones and repeated
words (a word that follows itself, over all words). Neural metrics are not here.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

from anyorder.core.errors import UserError
from anyorder.core.request import Prompt, Request
from anyorder.engine.engine import Engine
from anyorder.evaluation.generation import answers

TOKENIZERS = ("13a", "char", "intl", "none", "zh")
"""sacreBLEU's own ways to cut references into words that need no further package."""


@dataclass(frozen=True, kw_only=True)
class TranslationScore:
    """Of a test set's translations."""

    bleu: float
    bleu_signature: str
    chrf: float
    chrf_signature: str
    length_ratio: float
    """Words of the translations over words of the references."""
    empty: float
    """Share of translations without a word."""
    repeated: float
    """Share of words that equal the word before them."""


@dataclass(frozen=True, kw_only=True)
class Translations:
    """A model's output for a test set, and what it cost."""

    texts: tuple[str, ...]
    num_tokens: int
    num_passes: int
    """Of a request each, summed: what `tokens_per_pass` is over."""
    seconds: float

    @property
    def tokens_per_pass(self) -> float:
        """As if each had been translated alone."""
        return self.num_tokens / max(self.num_passes, 1)


def translate(
    engine: Engine,
    sources: Seq[Prompt],
    controls: Request,
    progress: Callable[[str, int, int], None] | None = None,
) -> Translations:
    """Every source as the prompt of a request with these controls."""
    started = time.perf_counter()
    texts, num_tokens, num_passes = [], 0, 0
    requests = (replace(controls, prompt=source) for source in sources)
    for done, answer in enumerate(answers(engine, requests), 1):
        texts.append(" ".join(answer.completion.text.split()))
        num_tokens += answer.completion.report.num_new_tokens
        num_passes += answer.completion.report.num_forward_passes
        if progress is not None:
            progress("translating", done, len(sources))
    return Translations(
        texts=tuple(texts),
        num_tokens=num_tokens,
        num_passes=num_passes,
        seconds=time.perf_counter() - started,
    )


def score(
    translations: Seq[str], references: Seq[str], *, tokenizer: str = "13a"
) -> TranslationScore:
    """One translation and one reference a segment, in the same order."""
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise UserError(
            "BLEU needs sacrebleu; install it with `pip install 'anyorder[evaluation]'`."
        ) from None
    if tokenizer not in TOKENIZERS:
        raise UserError(
            f"the words of BLEU must come from one of {', '.join(TOKENIZERS)}, got {tokenizer!r}."
        )
    if len(translations) != len(references) or not references:
        raise UserError(
            f"there are {len(translations)} translations for {len(references)} references; give "
            "one for each."
        )
    bleu, chrf = BLEU(tokenize=tokenizer), CHRF()
    bleu_score = bleu.corpus_score(translations, [references])
    chrf_score = chrf.corpus_score(translations, [references])
    words = [text.split() for text in translations]
    num_words = sum(map(len, words))
    repeats = sum(a == b for text in words for a, b in itertools.pairwise(text))
    return TranslationScore(
        bleu=bleu_score.score,
        bleu_signature=str(bleu.get_signature()),
        chrf=chrf_score.score,
        chrf_signature=str(chrf.get_signature()),
        length_ratio=num_words / max(sum(len(text.split()) for text in references), 1),
        empty=sum(not text for text in words) / len(words),
        repeated=repeats / max(num_words, 1),
    )
