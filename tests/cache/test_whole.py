"""Pages of encoders: shared as wholes, the last and partial page too, or not at all."""

from __future__ import annotations

import torch

from anyorder.cache.pool import Pool
from anyorder.cache.whole import WholeStore
from anyorder.core.attention import BIDIRECTIONAL, CAUSAL, Attention
from anyorder.core.sequence import Sequence

PAGE = 4
TEXT = [5, 6, 7, 8, 9, 10]


def make_store(num_pages: int = 8) -> WholeStore:
    pool = Pool(
        [(1, 2)],
        num_pages=num_pages,
        page_size=PAGE,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    return WholeStore(pool, num_pages=num_pages, role="encoder")


def run(store: WholeStore, tokens: list[int], attention: Attention = BIDIRECTIONAL) -> Sequence:
    sequence = store.open(salt="s")
    store.remember(sequence, tokens, attention)
    store.reserve(sequence, len(tokens))
    store.commit(sequence, tokens, attention)
    store.publish(sequence, 0)
    return sequence


def find(store: WholeStore, tokens: list[int], salt: str = "s") -> int:
    sequence = store.open(salt=salt)
    store.remember(sequence, tokens, BIDIRECTIONAL)
    found = store.attach(sequence, tokens, store.keys(tokens, salt), len(tokens))
    assert sequence.num_resident == found and sequence.length == len(tokens)
    sequence.close()
    return found


def test_only_whole_texts_are_found_again() -> None:
    store = make_store()
    with run(store, TEXT) as sequence:
        assert sequence.length == sequence.num_resident == 6
        assert find(store, TEXT) == 6
        for other in (TEXT[:4], [*TEXT, 11], [*TEXT[:5], 11], [4, *TEXT[1:]]):
            assert find(store, other) == 0
        assert find(store, TEXT, salt="another") == 0
    assert find(store, TEXT) == 6
    assert store.num_available == store.num_pages


def test_a_text_that_lost_a_page_is_not_found() -> None:
    store = make_store()
    run(store, TEXT).close()
    page = store.prefixes.evict()
    assert page is not None
    store.allocator.release(page)
    assert find(store, TEXT) == 0
    # Run again, the missing page is offered again.
    run(store, TEXT).close()
    assert find(store, TEXT) == 6
    assert store.num_available == store.num_pages


def test_what_was_not_run_in_one_piece_is_not_shared() -> None:
    store = make_store()
    run(store, TEXT, CAUSAL).close()
    assert find(store, TEXT) == 0
    sequence = store.open(salt="s")
    for part in (TEXT[:4], TEXT[4:]):
        store.reserve(sequence, sequence.length + len(part))
        store.commit(sequence, part, BIDIRECTIONAL)
        store.publish(sequence, 0)
    assert find(store, TEXT) == 0 and find(store, TEXT[:4]) == 4


def test_a_replay_is_offered_again() -> None:
    store = make_store(num_pages=2)
    sequence = run(store, TEXT)
    store.drop(sequence)
    run(store, [1, 2, 3, 4, 5]).close()  # takes the pages of the text
    assert find(store, TEXT) == 0
    keys = store.keys(TEXT, "s")
    assert store.attach(sequence, TEXT, keys, 6) == 0
    store.reserve(sequence, 6)
    store.commit(sequence, TEXT, BIDIRECTIONAL)
    store.publish(sequence, 0)
    assert find(store, TEXT) == 6
    assert sequence.spans[0].length == len(TEXT) and len(sequence.spans) == 1


def test_readers_share_what_they_cached_only_of_one_source() -> None:
    store, memory, other = make_store(), make_store(), make_store()
    readers = []
    for source in (run(memory, TEXT), run(other, TEXT), run(other, TEXT[:5])):
        reader = store.open(salt="s")
        store.bind(reader, source)
        assert reader.memory is source and reader.fork().memory is source
        readers.append(reader)
    assert readers[0].salt == readers[1].salt != readers[2].salt
