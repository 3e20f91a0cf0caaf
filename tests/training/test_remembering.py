"""A teacher that keeps what it made of a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.tiny import tiny_config
from tests.training.objectives.toys import pack, words

from anyorder.core.batch import PackedBatch, dense_batch
from anyorder.core.method import Abilities
from anyorder.core.packing import causal_within, document_positions
from anyorder.model.transformer import Transformer
from anyorder.training.network import Trainee
from anyorder.training.remembering import RememberingTeacher

ABILITIES = Abilities(name="teacher", vocabulary_size=61, context_length=256)


def teacher(seed: int = 0) -> Trainee:
    network = Transformer.random(tiny_config(), seed=seed)
    return Trainee(network=network, abilities=ABILITIES)


def rows(*documents: list[list[int]], taps: tuple[int, ...] = ()) -> PackedBatch:
    batch = pack(*documents, length=12)
    mask = causal_within(batch.documents_BT)
    packed = dense_batch(batch.tokens_BT, mask, document_positions(batch.documents_BT))
    packed.taps.update(dict.fromkeys(taps))
    return packed


A, B = [words(1, 5), words(2, 7)], [words(3, 12)]


def passes_of(teacher: RememberingTeacher) -> list[int]:
    """The tokens of each pass that its network runs from now on."""
    network: Any = teacher.network
    run, sizes = network.hidden, list[int]()

    def counted(packed: PackedBatch, pool: None) -> torch.Tensor:
        sizes.append(len(packed.tokens_N))
        found: torch.Tensor = run(packed, pool)
        return found

    network.hidden = counted
    return sizes


def test_states_are_those_of_the_model(tmp_path: Path) -> None:
    plain, keeping = teacher(), RememberingTeacher.of(teacher(), tmp_path / "states")
    for documents in ((A, B), (B,), (B, A)):
        expected, found = rows(*documents, taps=(1,)), rows(*documents, taps=(1,))
        torch.testing.assert_close(keeping.hidden(found), plain.hidden(expected))
        assert found.taps[1] is not None and expected.taps[1] is not None
        torch.testing.assert_close(found.taps[1], expected.taps[1])


def test_a_row_is_run_once_and_is_the_same_in_any_company(tmp_path: Path) -> None:
    keeping = RememberingTeacher.of(teacher(), tmp_path)
    sizes = passes_of(keeping)
    both = keeping.hidden(rows(A, B))
    assert sizes == [12, 12]
    assert torch.equal(keeping.hidden(rows(B, A)), torch.cat((both[12:], both[:12])))
    assert torch.equal(keeping.hidden(rows(B)), both[12:])
    again = RememberingTeacher.of(teacher(), tmp_path)
    assert torch.equal(again.hidden(rows(A)), both[:12])
    assert sizes == [12, 12] and not list(tmp_path.glob("*.partial"))


def test_what_is_not_there_is_run(tmp_path: Path) -> None:
    keeping = RememberingTeacher.of(teacher(), tmp_path)
    sizes = passes_of(keeping)
    first = keeping.hidden(rows(A))
    # Another layer, other limits of documents, another model.
    assert torch.equal(keeping.hidden(rows(A, taps=(1,))), first) and len(sizes) == 2
    assert torch.equal(keeping.hidden(rows(A)), first) and len(sizes) == 2, "fewer layers are there"
    joined = [[*A[0], *A[1]]]
    assert not torch.equal(keeping.hidden(rows(joined)), first) and len(sizes) == 3
    other = RememberingTeacher.of(teacher(seed=1), tmp_path)
    assert not torch.equal(other.hidden(rows(A)), first)
