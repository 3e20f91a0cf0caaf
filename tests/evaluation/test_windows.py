"""Windows ask for every token once, whatever their length and company."""

from __future__ import annotations

import pytest
from tests.tiny import tiny_engine, tiny_model
from tests.training.objectives.toys import ToyModel, words

from anyorder.evaluation.likelihood import chain_rule
from anyorder.evaluation.windows import HeldOutText, sizes, windows

TEXTS = [
    HeldOutText(tokens=words(seed, length), targets=[True] * length, text="x y\n")
    for seed, length in enumerate((30, 2, 7, 13, 1, 25))
]


@pytest.mark.parametrize("length", [2, 5, 13, 40])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_token_but_the_first_is_asked_for_once(length: int, batch_size: int) -> None:
    asked: dict[tuple[int, ...], int] = {}
    for batch in windows(TEXTS, length=length, batch_size=batch_size):
        assert batch.tokens_BT.shape[0] <= batch_size and batch.tokens_BT.shape[1] == length
        for tokens, documents, targets in zip(
            batch.tokens_BT, batch.documents_BT, batch.targets_BT, strict=True
        ):
            for number in range(int(documents.max()) + 1):
                inside = documents == number
                assert not targets[inside][0]
                piece = tuple(tokens[inside].tolist())
                asked[piece] = asked.get(piece, 0) + int(targets[inside].sum())
            assert not targets[documents < 0].any()
    assert sum(asked.values()) == sum(len(text.tokens) - 1 for text in TEXTS)
    for piece, count in asked.items():
        assert count == len(piece) - 1
        found = [text for text in TEXTS if piece == tuple(text.tokens)[: len(piece)]]
        assert found or any(_inside(piece, text.tokens) for text in TEXTS)


def _inside(piece: tuple[int, ...], tokens: object) -> bool:
    whole = tuple(tokens)  # type: ignore[call-overload]
    return any(whole[i : i + len(piece)] == piece for i in range(len(whole)))


def test_long_windows_give_the_engines_score() -> None:
    loaded = tiny_model()
    model = ToyModel(network=loaded.network, abilities=loaded.abilities)  # type: ignore[arg-type]
    engine = tiny_engine()
    exact = sum(sum(engine.score(list(t.tokens)).logprobs) for t in TEXTS if len(t.tokens) > 1)
    found = chain_rule(model, windows(TEXTS, length=64, batch_size=2))
    assert found.num_tokens == sizes(TEXTS).num_tokens == 72
    assert found.nats * 72 == pytest.approx(-exact, rel=1e-6)
    assert found.nats_per(36) == pytest.approx(2 * found.nats)
    other = chain_rule(model, windows(TEXTS, length=9, batch_size=3))
    assert other.num_tokens == 72 and other.nats != found.nats  # less context


def test_prompts_are_given() -> None:
    text = HeldOutText(
        tokens=[1, 2, 3, 4, 5], targets=[False, False, False, True, True], text="ä b"
    )
    (batch,) = windows([text], length=3, batch_size=8)
    assert batch.tokens_BT.tolist() == [[3, 4, 5]]
    assert batch.targets_BT.tolist() == [[False, True, True]]
    found = sizes([text])
    assert (found.num_tokens, found.num_words, found.num_bytes) == (2, 2, 4)
