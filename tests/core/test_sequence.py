"""The handle: it forwards to its store and closes at the end of a `with` block."""

from __future__ import annotations

import pytest

from anyorder.core.sequence import Sequence


class Recorder:
    """A store that only writes down what it is asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Sequence]] = []

    def fork(self, parent: Sequence) -> Sequence:
        self.calls.append(("fork", parent))
        return Sequence(store=self, role=parent.role, salt=parent.salt)

    def release(self, sequence: Sequence) -> None:
        self.calls.append(("release", sequence))

    def discard(self, sequence: Sequence, start: int) -> None:
        raise AssertionError("a method never discards")


def test_a_new_sequence_is_empty() -> None:
    sequence = Sequence(store=Recorder(), role="draft", salt="s")
    assert (sequence.role, sequence.salt, sequence.length) == ("draft", "s", 0)
    assert (sequence.tokens, sequence.spans, sequence.pages, sequence.num_resident) == (
        [],
        [],
        [],
        0,
    )
    sequence.tokens += [4, 5]
    assert sequence.length == 2
    with pytest.raises(AttributeError):
        sequence.lenght = 3  # type: ignore[attr-defined]


def test_fork_asks_the_store() -> None:
    store = Recorder()
    sequence = Sequence(store=store, role="draft")
    assert sequence.fork() is not sequence
    assert store.calls == [("fork", sequence)]


def test_leaving_the_block_releases_even_after_an_error() -> None:
    store = Recorder()
    with Sequence(store=store) as sequence:
        assert not store.calls
    assert store.calls == [("release", sequence)]
    with pytest.raises(KeyError), Sequence(store=store) as failed:
        raise KeyError
    assert store.calls[1:] == [("release", failed)]
