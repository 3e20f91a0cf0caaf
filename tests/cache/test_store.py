"""Pages: who holds them, copy on write, sharing, eviction. Content is checked through the pool."""

from __future__ import annotations

import random
import sys

import pytest
import torch

from anyorder.cache.allocator import OutOfPages, PageAllocator
from anyorder.cache.int8_pool import Int8Pool
from anyorder.cache.pool import Pool
from anyorder.cache.prefix import page_keys
from anyorder.cache.store import PagedStore
from anyorder.core.attention import (
    BIDIRECTIONAL,
    CAUSAL,
    Blocks,
    Tree,
)
from anyorder.core.sequence import Sequence

PAGE = 4
KIND: type[Pool] = Pool


@pytest.fixture(autouse=True, params=[Pool, Int8Pool])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything holds for both kinds of pool."""
    monkeypatch.setattr(sys.modules[__name__], "KIND", request.param)


def make_store(num_pages: int = 16) -> PagedStore:
    pool = KIND(
        [(1, 2)],
        num_pages=num_pages,
        page_size=PAGE,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    return PagedStore(pool, num_pages=num_pages)


def run(store: PagedStore, sequence: Sequence, tokens: list[int], attention=CAUSAL) -> None:
    """What the engine does for one piece; the 'network' caches each token's id as its key."""
    start = sequence.num_resident
    store.reserve(sequence, start + len(tokens))
    slots = torch.tensor(store.slots(sequence, start, start + len(tokens)))
    content = torch.tensor(tokens, dtype=torch.float32)[:, None, None].expand(-1, 1, 2)
    store.pool.write(0, slots, content, -content)
    store.commit(sequence, tokens, attention)


def cached(store: PagedStore, sequence: Sequence) -> list[int]:
    """Ids that the pool holds for the sequence's resident positions."""
    if not sequence.num_resident:
        return []
    pages = torch.tensor([sequence.pages])
    keys, values = store.pool.read(0, pages)
    keys, values = keys[0, : sequence.num_resident], values[0, : sequence.num_resident]
    assert torch.equal(keys, -values)
    return [round(float(x)) for x in keys[:, 0, 0]]


def assert_consistent(store: PagedStore, sequences: list[Sequence]) -> None:
    """Holders are exactly the sequences and the prefix cache; contents are the tokens."""
    held = [page for sequence in sequences for page in sequence.pages]
    for page in range(store.num_pages):
        expected = held.count(page) + store.prefixes.knows(page)
        assert store.allocator.holders(page) == expected, f"page {page}"
    for sequence in sequences:
        assert cached(store, sequence) == sequence.tokens[: sequence.num_resident]


def test_allocator_hands_out_lowest_pages_and_runs_dry() -> None:
    allocator = PageAllocator(3)
    assert [allocator.allocate() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OutOfPages):
        allocator.allocate()
    allocator.retain(1)
    assert allocator.release(1) == 1
    assert allocator.num_free == 0
    allocator.release(1)
    allocator.release(0)
    assert allocator.allocate() == 0


def test_allocator_refuses_misuse() -> None:
    allocator = PageAllocator(1)
    with pytest.raises(AssertionError, match="is free"):
        allocator.retain(0)
    allocator.release(allocator.allocate())
    with pytest.raises(AssertionError, match="more often"):
        allocator.release(0)


def test_page_keys_depend_on_everything_before_and_on_the_salt() -> None:
    tokens = list(range(12))
    keys = page_keys(tokens, PAGE, salt="a")
    assert len(keys) == 3 and len(set(keys)) == 3
    assert page_keys([*tokens[:11], 99], PAGE, salt="a")[:2] == keys[:2]
    assert page_keys([99, *tokens[1:]], PAGE, salt="a")[1] != keys[1]
    assert page_keys(tokens, PAGE, salt="b")[0] != keys[0]
    assert page_keys(tokens, PAGE, salt="a", known=keys[:1]) == keys
    assert page_keys(tokens[:3], PAGE, salt="a") == []


def test_start_discards_what_was_cached_from_there_on() -> None:
    store = make_store()
    sequence = store.open()
    run(store, sequence, list(range(10)))
    store.discard(sequence, 5)
    run(store, sequence, [50, 60])
    assert sequence.tokens == [0, 1, 2, 3, 4, 50, 60]
    assert_consistent(store, [sequence])
    with pytest.raises(AssertionError, match="hole"):
        store.discard(sequence, 8)


def test_fork_copies_only_the_page_it_writes() -> None:
    store = make_store()
    parent = store.open()
    run(store, parent, list(range(10)))
    child = parent.fork()
    assert child.pages == parent.pages
    run(store, child, [77])
    assert child.pages[:2] == parent.pages[:2] and child.pages[2] != parent.pages[2]
    run(store, parent, [88, 89])
    assert_consistent(store, [parent, child])
    assert cached(store, child) == [*range(10), 77]
    parent.close()
    parent.close()
    assert_consistent(store, [child])
    with child:
        pass
    assert store.num_available == store.num_pages


def test_prefixes_are_found_again_and_evicted_from_their_ends() -> None:
    store = make_store(num_pages=6)
    first = store.open()
    run(store, first, list(range(10)))
    store.publish(first, 10)
    first.close()
    assert store.num_available == 6 and store.prefixes.num_idle == 2

    again = store.open()
    tokens = list(range(10))
    assert store.attach(again, tokens, store.keys(tokens, ""), 9) == 8
    assert again.tokens == tokens[:8]
    assert_consistent(store, [again])
    other = store.open(salt="private")
    assert store.attach(other, tokens, store.keys(tokens, "private"), 9) == 0
    again.close()

    # Six pages are wanted, four are free: the prefix's end goes first, then its beginning.
    hungry = store.open()
    run(store, hungry, list(range(100, 100 + 5 * PAGE)))
    assert len(store.prefixes) == 1
    assert store.attach(store.open(), tokens, store.keys(tokens, ""), 9) == 4


def test_attach_never_goes_beyond_the_limit() -> None:
    store = make_store()
    first = store.open()
    run(store, first, list(range(8)))
    store.publish(first, 8)
    again = store.open()
    assert store.attach(again, list(range(8)), store.keys(range(8), ""), 7) == 4


def test_rewriting_a_published_page_leaves_the_published_one_alone() -> None:
    store = make_store()
    first = store.open()
    run(store, first, list(range(8)))
    store.publish(first, 8)
    store.discard(first, 6)
    run(store, first, [70, 71])
    second = store.open()
    store.attach(second, list(range(8)), store.keys(range(8), ""), 8)
    assert cached(store, second) == list(range(8))
    assert_consistent(store, [first, second])


def test_only_causal_pages_are_published() -> None:
    store = make_store()
    sequence = store.open()
    run(store, sequence, list(range(4)))
    run(store, sequence, [10, 11, 12, 13], BIDIRECTIONAL)
    store.publish(sequence, 8)
    assert len(store.prefixes) == 1


def test_keys_of_blocks_depend_on_all_that_their_tokens_saw() -> None:
    tokens = list(range(12))
    keys = page_keys(tokens, PAGE, salt="a", attention=Blocks(size=3))
    assert len(keys) == 3 and keys[0] != page_keys(tokens, PAGE, salt="a")[0]
    assert keys[0] != page_keys(tokens, PAGE, salt="a", attention=Blocks(size=6))[0]
    for place, num_same in ((2, 0), (5, 0), (6, 1), (8, 1), (9, 2)):
        other = [*tokens[:place], 99, *tokens[place + 1 :]]
        found = page_keys(other, PAGE, salt="a", attention=Blocks(size=3))
        same = [one == two for one, two in zip(found, keys, strict=True)]
        assert same == [page < num_same for page in range(3)]
        again = page_keys(other, PAGE, salt="a", known=found[:1], attention=Blocks(size=3))
        assert again == found
    assert len(page_keys(tokens, PAGE, salt="a", attention=Blocks(size=5))) == 2
    assert page_keys(tokens, PAGE, salt="a", attention=Blocks(size=16)) == []
    assert page_keys(tokens, PAGE, salt="a", attention=BIDIRECTIONAL) == []


def test_whole_blocks_are_shared_and_the_rest_of_their_last_page_is_run_anew() -> None:
    store, blocks, tokens = make_store(), Blocks(size=5), list(range(13))
    first = store.open()
    run(store, first, tokens, blocks)
    store.publish(first, 13)
    assert len(store.prefixes) == len(first.page_keys) == 2  # of ten whole tokens

    again = store.open()
    keys = store.keys([*tokens, 50, 60], "", blocks)
    assert store.attach(again, tokens, keys, 10, blocks) == again.length == 5
    assert len(again.pages) == 2 and again.spans[0].attention == blocks
    run(store, again, [5, 6, 7, 8, 9, 70, 80], blocks)
    assert cached(store, again) == [*range(10), 70, 80] and cached(store, first) == tokens
    assert again.spans[0].num_kept == 12 and len(again.spans) == 1
    assert_consistent(store, [first, again])
    store.drop(again)
    assert store.attach(again, again.tokens, store.keys(again.tokens, "", blocks), 12, blocks) == 5

    causally = store.open()
    assert store.attach(causally, tokens, store.keys(tokens, ""), 12) == 0
    # A block that is cut is another one: nothing is told of it under its old name.
    store.discard(first, 7)
    assert first.page_keys == keys[:1]
    store.discard(first, 5)
    run(store, first, [5, 6, 7, 8, 99], blocks)
    store.publish(first, 10)
    assert first.page_keys == store.keys([*range(9), 99], "", blocks) != keys[:2]


def test_drop_and_replay_keep_the_tokens() -> None:
    store = make_store()
    sequence = store.open()
    run(store, sequence, [1, 2, 3])
    run(store, sequence, [4, 5, 6], BIDIRECTIONAL)
    store.discard(sequence, 5)
    store.drop(sequence)
    assert sequence.tokens == [1, 2, 3, 4, 5] and sequence.num_resident == 0
    run(store, sequence, [1, 2, 3])
    assert sequence.spans[0].cut == (6,)
    run(store, sequence, [4, 5, 6], BIDIRECTIONAL)
    assert sequence.num_resident == 5 and len(sequence.spans) == 1
    assert_consistent(store, [sequence])


def test_what_ran_causally_in_a_tree_is_no_span_once_the_rest_is_gone() -> None:
    store = make_store()
    sequence = store.open()
    run(store, sequence, [1, 2])
    run(store, sequence, [3, 4, 5, 6], Tree(parents=(-1, 0, 0, 1)))
    store.discard(sequence, 6)
    assert len(sequence.spans) == 1, "nothing was cut off"
    store.discard(sequence, 5)
    assert len(sequence.spans) == 1, "siblings are left"
    store.discard(sequence, 4)
    assert not sequence.spans and sequence.tokens == [1, 2, 3, 4]


def test_what_an_earlier_owner_left_is_never_read() -> None:
    store = make_store(num_pages=3)
    for tensor in store.pool.tensors():
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
    sequence = store.open()
    run(store, sequence, [1, 2, 3, 4, 5])
    keys, values = store.pool.read(0, torch.tensor([sequence.pages]))
    assert not keys.isnan().any() and not values.isnan().any()


def test_out_of_pages_leaves_everything_usable() -> None:
    store = make_store(num_pages=2)
    sequence = store.open()
    run(store, sequence, [1, 2, 3])
    with pytest.raises(OutOfPages):
        store.reserve(sequence, 13)
    run(store, sequence, [4, 5])
    assert_consistent(store, [sequence])


@pytest.mark.parametrize("seed", range(20))
def test_random_lives(seed: int) -> None:
    """Forks, rewrites, drops, replays and sharing in any order: no page leaks, no page lies."""
    rng = random.Random(seed)
    store = make_store(num_pages=24)
    family: dict[Sequence, None] = {}
    for _ in range(300):
        sequences = list(family)
        choice = rng.random()
        try:
            if not sequences or (choice < 0.15 and len(sequences) < 5):
                fresh = store.open(family=family)
                tokens = [rng.randrange(2) for _ in range(rng.randrange(1, 12))]
                store.attach(fresh, tokens, store.keys(tokens, ""), len(tokens) - 1)
                run(store, fresh, tokens[fresh.num_resident :])
                continue
            sequence = rng.choice(sequences)
            if choice < 0.3 and len(sequences) < 5:
                sequence.fork()
            elif choice < 0.4:
                sequence.close()
            elif choice < 0.5:
                store.drop(sequence)
            elif choice < 0.7:
                store.discard(sequence, rng.randrange(sequence.length + 1))
            elif choice < 0.8:
                store.publish(sequence, sequence.length)
            if sequence in family:
                if sequence.num_resident < sequence.length:
                    run(store, sequence, sequence.tokens[sequence.num_resident :])
                run(store, sequence, [rng.randrange(2) for _ in range(rng.randrange(1, 6))])
        except OutOfPages:
            next(iter(family)).close()
        assert_consistent(store, list(family))
    for sequence in list(family):
        sequence.close()
    assert store.num_available == store.num_pages


# ------------------------------------------------------------------------------------ draft checks
@pytest.mark.parametrize("num_text", [0, 3, 4, 6])
@pytest.mark.parametrize("offsets", [[], [0], [0, 1], [0, 2, 5], [1, 3, 4, 6], list(range(7))])
def test_keep_moves_the_accepted_path_together(num_text: int, offsets: list[int]) -> None:
    """A tree's accepted path lies side by side afterwards, as if it had been run causally."""
    store = make_store()
    sequence = store.open()
    text, draft = list(range(num_text)), [50, 51, 52, 53, 54, 55, 56]
    if text:
        run(store, sequence, text)
    run(store, sequence, draft, Tree(parents=(-1, 0, 0, 1, 2, 2, 4)))
    store.keep(sequence, num_text, offsets)
    assert sequence.tokens == [*text, *(draft[offset] for offset in offsets)]
    assert sequence.num_resident == sequence.length
    assert not sequence.spans, "what was kept counts as run causally"
    assert len(sequence.pages) == store.pages_for(sequence.length)
    assert_consistent(store, [sequence])
    run(store, sequence, [90, 91])
    assert_consistent(store, [sequence])


def test_keep_leaves_earlier_spans_and_forks_alone() -> None:
    store = make_store()
    sequence = store.open()
    run(store, sequence, [1, 2, 3])
    run(store, sequence, [4, 5], BIDIRECTIONAL)
    twin = sequence.fork()
    run(store, sequence, [50, 51, 52], Tree(parents=(-1, 0, 0)))
    other = sequence.fork()
    # The engine makes pages writable before a pass; the draft's page was the sequence's own.
    store.discard(other, 5)
    store.keep(sequence, 5, [0, 2])
    assert sequence.tokens == [1, 2, 3, 4, 5, 50, 52]
    assert [span.start for span in sequence.spans] == [3]
    assert twin.tokens == other.tokens == [1, 2, 3, 4, 5]
    assert_consistent(store, [sequence, twin, other])


def test_keep_after_a_preemption_is_replayed_causally() -> None:
    store = make_store()
    sequence = store.open()
    run(store, sequence, [1, 2, 3])
    run(store, sequence, [50, 51, 52], Tree(parents=(-1, 0, 0)))
    store.drop(sequence)
    run(store, sequence, [1])
    store.keep(sequence, 3, [0, 2])
    assert sequence.tokens == [1, 2, 3, 50, 52] and not sequence.spans
    assert sequence.num_resident == 1
    run(store, sequence, [2, 3, 50, 52])
    assert sequence.num_resident == 5
    assert_consistent(store, [sequence])


def test_keep_in_the_middle_of_a_replay_trusts_none_of_the_draft() -> None:
    store = make_store()
    sequence = store.open()
    run(store, sequence, [1, 2, 3])
    run(store, sequence, [50, 51, 52], Tree(parents=(-1, 0, 0)))
    store.drop(sequence)
    run(store, sequence, [1, 2, 3, 50, 51])
    store.keep(sequence, 3, [0, 2])
    assert sequence.num_resident == 3
    run(store, sequence, [50, 52])
    assert_consistent(store, [sequence])


def test_kept_tokens_are_shared_as_a_prefix_and_dropped_ones_are_not() -> None:
    store = make_store()
    sequence = store.open()
    run(store, sequence, [1, 2])
    run(store, sequence, [50, 51, 52, 53], Tree(parents=(-1, 0, 0, 2)))
    store.publish(sequence, 6)
    assert len(store.prefixes) == 0, "a tree is not causal"
    store.keep(sequence, 2, [0, 2, 3])
    run(store, sequence, [60, 61, 62])
    store.publish(sequence, sequence.length)
    assert len(store.prefixes) == 2
    again = store.open()
    tokens = [1, 2, 50, 52, 53, 60, 61, 62]
    assert store.attach(again, tokens, store.keys(tokens, ""), 8) == 8
    assert_consistent(store, [sequence, again])
