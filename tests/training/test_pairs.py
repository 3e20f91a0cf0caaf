"""Pairs in rows against the pairs as they were written: nothing cut, lost or moved."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.runs import byte_tokenizer

from anyorder.core.errors import UserError
from anyorder.model.tokenizer import Tokenizer
from anyorder.training.data import held_out
from anyorder.training.documents import PairEncoder, Split
from anyorder.training.pairs import PairDataset, prepare_pairs
from anyorder.training.readers import Source, read_pairs

END = 256
LENGTHS = {"length": 24, "source_length": 16}

Pair = tuple[str, str]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(byte_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def written(count: int = 60) -> list[Pair]:
    """Pairs of many sizes, the longest of which just fit."""
    sizes = [(1 + n * 7 % 15, 1 + n * 11 % 22) for n in range(count)]
    return [(f"{n:x}".ljust(a, "s")[:16], f"{n:x}".ljust(b, "t")[:22]) for n, (a, b) in
            enumerate(sizes)]  # fmt: skip


def tsv(path: Path, pairs: list[Pair], **fields: Any) -> Source:
    path.write_text("".join(f"{a}\t{b}\n" for a, b in pairs), "utf-8")
    return Source(path=str(path), format="pairs", **fields)


def unpacked(dataset: PairDataset, tokenizer: Tokenizer, epoch: int = 0) -> list[list[Pair]]:
    """The pairs of every row of an epoch, in order, after checks of its form."""
    found = []
    for index in range(dataset.num_sequences):
        batch = dataset.batch(epoch * dataset.num_sequences + index, batch_size=1)
        assert batch.sources_BS is not None and batch.source_documents_BS is not None
        (tokens,), (documents,), (targets,) = (
            batch.tokens_BT,
            batch.documents_BT,
            batch.targets_BT,
        )
        (sources,), (source_documents,) = batch.sources_BS, batch.source_documents_BS
        assert tokens.shape == (dataset.length,) and sources.shape == (dataset.source_length,)
        row = []
        for numbers in (documents, source_documents):
            inside = numbers[numbers >= 0]
            assert inside.tolist() == sorted(inside.tolist()) and (numbers[len(inside) :] < 0).all()
            assert inside[0] == 0
        for number in range(int(documents.max()) + 1):
            target = tokens[documents == number].tolist()
            assert target[0] == target[-1] == END and END not in target[1:-1]
            flags = targets[documents == number].tolist()
            assert flags == [False] + [True] * (len(target) - 1)
            source = sources[source_documents == number].tolist()
            row.append((tokenizer.decode(source), tokenizer.decode(target[1:-1])))
        assert source_documents.max() == documents.max() and not targets[documents < 0].any()
        found.append(row)
    return found


def test_every_pair_lies_whole_in_one_row(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = tsv(tmp_path / "a.tsv", written())
    dataset = prepare_pairs([source], tokenizer, tmp_path, **LENGTHS, seed=4)
    rows = unpacked(dataset, tokenizer)
    assert Counter(pair for row in rows for pair in row) == Counter(written())
    statistics = dataset.statistics
    assert statistics.num_documents == 60
    num_tokens = sum(len(a) + len(b) + 2 for a, b in written())
    assert statistics.num_tokens == statistics.sources[0].num_tokens == num_tokens
    assert statistics.padding == pytest.approx(1 - num_tokens / (len(rows) * 40))
    assert statistics.sources[0].num_targets == sum(len(b) + 1 for _, b in written())
    # No better packing has fewer rows than the fuller side needs.
    least = max(sum(len(a) for a, _ in written()) / 16, sum(len(b) + 2 for _, b in written()) / 24)
    assert len(rows) < 1.15 * least
    assert sum(len(row) > 1 for row in rows) > 10


def test_a_batch_is_a_function_of_its_step(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = tsv(tmp_path / "a.tsv", written())

    def opened(seed: int) -> PairDataset:
        return prepare_pairs([source], tokenizer, tmp_path, **LENGTHS, seed=seed)

    first, again, other = opened(1), opened(1), opened(2)
    count = first.num_sequences
    epochs = [unpacked(first, tokenizer, epoch) for epoch in (0, 1)]
    assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1])
    assert sorted(unpacked(other, tokenizer)) != sorted(epochs[0])
    for name in ("tokens_BT", "documents_BT", "targets_BT", "sources_BS", "source_documents_BS"):
        whole = getattr(again.batch(2, batch_size=6), name)
        singles = [getattr(first.batch(12 + i, batch_size=1), name) for i in range(6)]
        assert torch.equal(whole, torch.cat(singles)) and whole.dtype in (torch.int64, torch.bool)
        parts = [first.batch(2, batch_size=6, rank=r, world_size=3) for r in range(3)]
        assert torch.equal(whole, torch.cat([getattr(part, name) for part in parts]))
    # A batch may reach from one epoch into the next.
    whole = first.batch(0, batch_size=count + 1).tokens_BT
    assert torch.equal(whole[-1:], first.batch(count, batch_size=1).tokens_BT)
    with pytest.raises(UserError, match="6 sequences cannot be shared by 4 processes"):
        first.batch(2, batch_size=6, world_size=4)


def test_equal_sources_are_on_one_side(tokenizer: Tokenizer, tmp_path: Path) -> None:
    pairs = [(f"s{n % 100}", f"t{n}") for n in range(300)]
    source = tsv(tmp_path / "a.tsv", pairs)
    sides: dict[str, set[Pair]] = {}
    for part in ("train", "validation", "test"):
        dataset = prepare_pairs(
            [source],
            tokenizer,
            tmp_path,
            **LENGTHS,
            validation=0.2,
            test=0.1,
            part=part,  # type: ignore[arg-type]
        )
        sides[part] = {pair for row in unpacked(dataset, tokenizer) for pair in row}
        documents = held_out(source, part, validation=0.2, test=0.1, pairs=True)  # type: ignore[arg-type]
        assert {(document.prompt, document.text) for document in documents} == sides[part]
    assert set.union(*sides.values()) == set(pairs) and sum(map(len, sides.values())) == 300
    sources = {part: {a for a, _ in side} for part, side in sides.items()}
    assert not sources["train"] & sources["validation"] and not sources["train"] & sources["test"]
    assert not sources["validation"] & sources["test"]
    assert 10 <= len(sources["validation"]) <= 32 and 3 <= len(sources["test"]) <= 20
    more = held_out(source, "validation", validation=0.2, test=0.5, pairs=True)
    assert {document.prompt for document in more} == sources["validation"]


def test_pairs_are_held_out_alike_as_texts_with_a_prompt(tmp_path: Path) -> None:
    """A decoder that reads the source as a prompt can be compared on the same test pairs."""
    source = tsv(tmp_path / "a.tsv", written(), separator=" => ")
    apart = {pair.text for pair in held_out(source, "test", validation=0.2, test=0.3, pairs=True)}
    joined = list(held_out(source, "test", validation=0.2, test=0.3))
    assert {document.text for document in joined} == apart and 8 < len(apart) < 30
    assert all(document.prompt.endswith(" => ") for document in joined)


def test_shares_that_leave_nothing_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sum is below 1, got 0\.5 and 0\.5"):
        Split(validation=0.5, test=0.5)
    source = tsv(tmp_path / "a.tsv", written())
    with pytest.raises(UserError, match="is for test; change test, which is 0"):
        prepare_pairs([source], tokenizer, tmp_path, **LENGTHS, part="test")


# ------------------------------------------------------------------------------------- bad data
def test_pairs_that_are_too_long_stop_or_are_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    pairs = [("a" * 16, "b" * 22), ("a" * 17, "b"), ("a", "b" * 23), ("c", "d")]
    source = tsv(tmp_path / "a.tsv", pairs)
    with pytest.raises(UserError) as stopped:
        prepare_pairs([source], tokenizer, tmp_path, **LENGTHS)
    assert "2 of 4 pairs are too long for [data] source_length 16 or length 24" in str(
        stopped.value
    )
    assert "the first, pair 2, has 17 source and 3 target tokens" in str(stopped.value)
    assert "on_error = 'skip'" in str(stopped.value)
    source = tsv(tmp_path / "a.tsv", pairs, on_error="skip")
    dataset = prepare_pairs([source], tokenizer, tmp_path, **LENGTHS)
    found = [pair for row in unpacked(dataset, tokenizer) for pair in row]
    assert sorted(found) == sorted([pairs[0], pairs[3]])
    (statistics,) = dataset.statistics.sources
    assert statistics.num_skipped == 2 and "pair 2, has 17" in statistics.problems[0]
    # More room needs no new preparation and skips nothing.
    wide = prepare_pairs([source], tokenizer, tmp_path, length=25, source_length=17)
    assert wide.statistics.num_documents == 4 and wide.statistics.sources[0].num_skipped == 0


def test_an_empty_source_is_a_bad_line(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = tsv(tmp_path / "a.tsv", [("a", "b"), (" ", "c"), ("d", "e")])
    with pytest.raises(UserError, match=r"a\.tsv: pair 2 has an empty source; on_error = 'skip'"):
        prepare_pairs([source], tokenizer, tmp_path, **LENGTHS)
    source = tsv(tmp_path / "a.tsv", [("a", "b"), (" ", "c"), ("d", "e")], on_error="skip")
    dataset = prepare_pairs([source], tokenizer, tmp_path, **LENGTHS)
    assert dataset.statistics.num_documents == 2
    assert dataset.statistics.sources[0].num_skipped == 1


def test_what_holds_no_pairs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x"}) + "\n")
    for fields in ({"format": "jsonl"}, {"format": "text"}, {"format": "chat"}):
        source = Source(path=str(tmp_path / "a.jsonl"), **fields)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=f"is read as {fields['format']} and holds no pairs"):
            list(read_pairs(source, lambda message: None))


def test_json_lines_of_two_fields(tmp_path: Path) -> None:
    rows = [{"de": "Haus", "en": "house"}, {"de": "Hund"}, {"de": "Katze", "en": "cat"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Source(
        path=str(tmp_path / "a.jsonl"), format="jsonl", prompt="en", text="de", on_error="skip"
    )
    problems: list[str] = []
    found = [(pair.prompt, pair.text) for pair in read_pairs(source, problems.append)]
    assert found == [("house", "Haus"), ("cat", "Katze")]
    assert len(problems) == 1 and "line 2 has no text called 'en'" in problems[0]


def test_a_tokenizer_without_an_end_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = byte_tokenizer(tmp_path / "endless")
    data = json.loads((folder / "tokenizer.json").read_text())
    data["added_tokens"] = []
    (folder / "tokenizer.json").write_text(json.dumps(data))
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match="needs to know where a text ends"):
        PairEncoder.of(Tokenizer.from_folder(folder))
    encoder = PairEncoder.of(tokenizer)
    assert (encoder.start, encoder.end) == (END, (END,))
