"""Scores of translations are sacrebleu's; translating asks the engine."""

from __future__ import annotations

import sys

import pytest
import sacrebleu
from tests.tiny import tiny_engine

from anyorder.core.errors import UserError
from anyorder.core.request import Request
from anyorder.evaluation.translation import score, translate

REFERENCES = ["Das Haus ist groß.", "Ich sehe den roten Hund nicht.", "Guten Tag, Welt!"]
OUTPUTS = ["Das Haus ist sehr sehr groß.", "Ich sehe den Hund nicht.", ""]


def test_scores_are_sacrebleus() -> None:
    found = score(OUTPUTS, REFERENCES)
    assert found.bleu == sacrebleu.corpus_bleu(OUTPUTS, [REFERENCES]).score
    assert found.chrf == sacrebleu.corpus_chrf(OUTPUTS, [REFERENCES]).score
    assert "tok:13a" in found.bleu_signature and sacrebleu.__version__ in found.bleu_signature
    assert "nc:6" in found.chrf_signature
    assert found.empty == pytest.approx(1 / 3)
    assert found.repeated == pytest.approx(1 / 11)  # sehr sehr
    assert found.length_ratio == pytest.approx(11 / 13)
    assert score(REFERENCES, REFERENCES).bleu == pytest.approx(100)
    assert "tok:char" in score(OUTPUTS, REFERENCES, tokenizer="char").bleu_signature


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="2 translations for 3 references"):
        score(OUTPUTS[:2], REFERENCES)
    with pytest.raises(UserError, match="one of 13a, char, intl, none, zh, got 'x'"):
        score(OUTPUTS, REFERENCES, tokenizer="x")
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(UserError, match=r"pip install 'anyorder\[evaluation\]'"):
        score(OUTPUTS, REFERENCES)


def test_translating() -> None:
    engine = tiny_engine()
    sources = [[3, 4, 5], [9], [7, 7]]
    told: list[tuple[int, int]] = []
    found = translate(
        engine,
        sources,
        Request(prompt="", max_new_tokens=12),
        lambda stage, done, total: told.append((done, total)),
    )
    alone = [engine.generate(source, max_new_tokens=12) for source in sources]
    assert found.num_tokens == sum(len(one.tokens) for one in alone)
    assert found.tokens_per_pass == pytest.approx(1) and len(found.texts) == 3
    assert told == [(1, 3), (2, 3), (3, 3)]
