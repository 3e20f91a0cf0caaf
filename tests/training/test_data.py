"""Packing against the stream of documents written out in full; caching; sharing among ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.model.small_tokenizers import CORPUS

from anyorder.core.errors import UnknownName, UserError
from anyorder.model.tokenizer import Tokenizer
from anyorder.training import token_store
from anyorder.training.data import PackedDataset, prepare, shuffled
from anyorder.training.documents import Document, Encoder
from anyorder.training.readers import Source
from anyorder.training.tokenizers import train_tokenizer

LENGTH = 16


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_tokenizer(CORPUS, tmp_path_factory.mktemp("tokenizer"), size=300)


def texts(count: int, letter: str = "a") -> list[str]:
    """Documents that differ, some shorter and some longer than a sequence."""
    return [f"{letter}{number} " * (1 + number % 13) + "\n" for number in range(count)]


def paragraphs(path: Path, documents: list[str]) -> Source:
    path.write_text("\n".join(documents), "utf-8")
    return Source(path=str(path), format="paragraphs")


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return paragraphs(tmp_path / "a.txt", texts(40))


def pieces(dataset: PackedDataset, *, batch_size: int = 1) -> list[list[int]]:
    """The documents in every sequence of the first epoch, in order."""
    found = []
    for step in range(dataset.num_sequences // batch_size):
        batch = dataset.batch(step, batch_size=batch_size)
        for tokens, documents in zip(batch.tokens_BT, batch.documents_BT, strict=True):
            for number in range(int(documents.max()) + 1):
                found.append(tokens[documents == number].tolist())
    return found


# ---------------------------------------------------------------------------------------- packing
def test_an_epoch_is_every_document_once(
    source: Source, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    dataset = prepare([source], tokenizer, tmp_path / "cache", length=LENGTH, seed=3)
    encoder = Encoder.of(tokenizer)
    wanted = [encoder.encode(Document(text=text))[0] for text in texts(40)]
    assert Counter(token for piece in pieces(dataset) for token in piece) == Counter(
        token for document in wanted for token in document
    )
    # In the order of the sequences the stream is the documents in the seed's order.
    order = shuffled(dataset.num_sequences, 3, 2, 0)
    rows: list[Any] = [None] * dataset.num_sequences
    for place, index in enumerate(order):
        rows[index] = dataset.batch(place, batch_size=1)
    stream = torch.cat([row.tokens_BT[row.documents_BT >= 0] for row in rows]).tolist()
    expected = [token for number in shuffled(40, 3, 0) for token in wanted[number]]
    assert stream == expected
    # Documents begin anew where the stream says, and at the start of each sequence.
    starts = {0, *np.cumsum([len(wanted[number]) for number in shuffled(40, 3, 0)]).tolist()}
    for index, row in enumerate(rows):
        (documents,) = row.documents_BT.tolist()
        assert documents[0] == 0
        for place in range(1, LENGTH):
            if documents[place] >= 0:
                new = index * LENGTH + place in starts
                assert documents[place] - documents[place - 1] == new
    assert all((row.documents_BT >= 0).all() for row in rows[:-1])
    assert row.targets_BT.tolist() == (row.documents_BT >= 0).tolist()
    assert row.tokens_BT.dtype == row.documents_BT.dtype == torch.int64
    assert row.targets_BT.dtype == torch.bool
    statistics = dataset.statistics
    assert (statistics.num_documents, statistics.num_tokens) == (40, len(expected))
    assert statistics.padding * LENGTH * len(rows) == pytest.approx(
        sum(int((row.documents_BT < 0).sum()) for row in rows)
    )
    assert statistics.sources[0].num_bytes == sum(len(text) for text in texts(40))
    assert statistics.sources[0].num_targets == len(expected)


def test_targets_follow_their_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "a.tsv"
    file.write_text("".join(f"question {n}\tanswer {n}\n" for n in range(20)))
    source = Source(path=str(file), format="pairs")
    dataset = prepare([source], tokenizer, tmp_path / "cache", length=512)
    batch = dataset.batch(0, batch_size=1)
    for number in range(20):
        inside = batch.documents_BT == number
        learnt = tokenizer.decode(batch.tokens_BT[inside & batch.targets_BT].tolist())
        given = tokenizer.decode(batch.tokens_BT[inside & ~batch.targets_BT].tolist())
        assert given == learnt.replace("answer", "question") + "\n"


def test_ranks_share_the_batch(source: Source, tokenizer: Tokenizer, tmp_path: Path) -> None:
    dataset = prepare([source], tokenizer, tmp_path / "cache", length=LENGTH)
    for step in (0, 5, 1000):
        whole = dataset.batch(step, batch_size=6)
        for world_size in (2, 3, 6):
            parts = [
                dataset.batch(step, batch_size=6, rank=rank, world_size=world_size)
                for rank in range(world_size)
            ]
            for name in ("tokens_BT", "documents_BT", "targets_BT"):
                joined = torch.cat([getattr(part, name) for part in parts])
                assert torch.equal(joined, getattr(whole, name))
    with pytest.raises(UserError, match="6 sequences cannot be shared by 4 processes"):
        dataset.batch(0, batch_size=6, world_size=4)


def test_epochs_differ_and_batch_sizes_agree(
    source: Source, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    dataset = prepare([source], tokenizer, tmp_path / "cache", length=LENGTH, seed=1)
    count = dataset.num_sequences
    epochs = [
        torch.cat([dataset.batch(e * count + i, batch_size=1).tokens_BT for i in range(count)])
        for e in range(2)
    ]
    assert not torch.equal(*epochs)
    assert sorted(epochs[0].tolist()) == sorted(epochs[1].tolist())
    # A batch may reach from one epoch into the next; batches of any size walk the same path.
    both = torch.cat(epochs)
    assert torch.equal(dataset.batch(0, batch_size=2 * count).tokens_BT, both)
    size = count - 1
    assert torch.equal(dataset.batch(1, batch_size=size).tokens_BT, both[size : 2 * size])
    other = prepare([source], tokenizer, tmp_path / "cache", length=LENGTH, seed=2)
    assert not torch.equal(other.batch(0, batch_size=count).tokens_BT, epochs[0])


def test_permutations() -> None:
    """Each order of three comes up as often as the others, over keys."""
    for count in (0, 1, 1000):
        assert sorted(shuffled(count, 7)) == list(range(count))
    seen = Counter(tuple(shuffled(3, seed, 2, epoch)) for seed in range(60) for epoch in range(50))
    # Chi-squared with 5 degrees of freedom exceeds 20.5 once in a thousand.
    assert sum((seen[key] - 500) ** 2 / 500 for key in seen) < 20.5 and len(seen) == 6
    assert shuffled(6, 0, 2, 0).tolist() == shuffled.__wrapped__(6, 0, 2, 0).tolist()


# --------------------------------------------------------------------------- shares and validation
@pytest.mark.parametrize("shares", [(1.0, 1.0), (3.0, 1.0), (0.1, 0.9)])
def test_mixture(tokenizer: Tokenizer, tmp_path: Path, shares: tuple[float, float]) -> None:
    sources = [
        Source(
            path=paragraphs(tmp_path / f"{letter}.txt", texts(count, letter)).path,
            format="paragraphs",
            weight=share,
        )
        for letter, count, share in zip("ab", (60, 200), shares, strict=True)
    ]
    dataset = prepare(sources, tokenizer, tmp_path / "cache", length=LENGTH)
    statistics = dataset.statistics
    assert statistics.shares[0] == pytest.approx(shares[0] / sum(shares), abs=0.01)
    # Every document is there, and the sets come round evenly: no document two times more often.
    last = prepare(sources, tokenizer, tmp_path / "cache", length=1 << 16)
    (row,) = last.batch(0, batch_size=1).tokens_BT
    words = Counter(tokenizer.decode(row.tolist()).split("\n"))
    counts = [
        [words[text[:-1]] for text in texts(n, letter)] for letter, n in (("a", 60), ("b", 200))
    ]
    assert min(map(min, counts)) == 1
    assert all(max(each) - min(each) <= 1 for each in counts)


def test_weights_for_all_or_none(source: Source, tokenizer: Tokenizer, tmp_path: Path) -> None:
    sources = [source, Source(path=source.path, weight=1.0)]
    with pytest.raises(UserError, match="every data source a weight, or none"):
        prepare(sources, tokenizer, tmp_path / "cache", length=LENGTH)
    twice = prepare([source, source], tokenizer, tmp_path / "cache", length=LENGTH)
    assert twice.statistics.shares == (0.5, 0.5) and twice.statistics.num_documents == 80


def test_validation_split(tokenizer: Tokenizer, tmp_path: Path) -> None:
    documents = texts(200)
    first = paragraphs(tmp_path / "a.txt", documents)
    second = paragraphs(tmp_path / "b.txt", documents[::-1][:150])

    def side(source: Source, part: Any, seed: int) -> set[str]:
        dataset = prepare(
            [source],
            tokenizer,
            tmp_path / "cache",
            length=1 << 15,
            seed=seed,
            validation=0.2,
            part=part,
        )
        whole = tokenizer.decode(dataset.batch(0, batch_size=1).tokens_BT[0].tolist())
        return {text for text in documents if text in whole}

    held_out = side(first, "validation", 0)
    assert held_out | side(first, "train", 5) == set(documents)
    assert not held_out & side(first, "train", 0) and held_out == side(first, "validation", 9)
    assert 20 <= len(held_out) <= 60  # 40 on average, standard deviation 5.7
    assert side(second, "validation", 0) == held_out & set(documents[::-1][:150])


def test_refused(source: Source, tokenizer: Tokenizer, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match="name at least one source"):
        prepare([], tokenizer, cache, length=LENGTH)
    with pytest.raises(UserError, match="length must be at least 2"):
        prepare([source], tokenizer, cache, length=1)
    with pytest.raises(UserError, match=r"sum is below 1, got 1\.0 and 0\.0"):
        prepare([source], tokenizer, cache, length=LENGTH, validation=1.0)
    with pytest.raises(UserError, match=r"none of .* documents is for validation"):
        prepare([source], tokenizer, cache, length=LENGTH, part="validation")
    (tmp_path / "empty.jsonl").write_text('{"a": 1}\n{"text": ""}\n')
    empty = Source(path=str(tmp_path / "empty.jsonl"), format="jsonl", on_error="skip")
    with pytest.raises(UserError, match=r"has no documents; 1 were skipped, the first: .* line 1"):
        prepare([empty], tokenizer, cache, length=LENGTH)


# ---------------------------------------------------------------------------------------- caching
def test_tokenised_once(
    source: Source, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    calls: list[tuple[str, int, int]] = []
    first = prepare(
        [source], tokenizer, cache, length=LENGTH, progress=lambda *call: calls.append(call)
    )
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
    assert calls[-1][1] == calls[-1][2] == source.num_bytes() and calls[0][1] < calls[0][2]
    assert all(done < total for _, done, total in calls[:-1])

    def refuse(*arguments: object) -> None:
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(token_store, "read", refuse)
        again = prepare([source], tokenizer, cache, length=LENGTH)
        assert again.statistics == first.statistics
        assert torch.equal(
            again.batch(7, batch_size=4).tokens_BT, first.batch(7, batch_size=4).tokens_BT
        )
        prepare([source], tokenizer, cache, length=2 * LENGTH, seed=8, validation=0.5)
        with pytest.raises(AssertionError, match="read again"):
            other = train_tokenizer(CORPUS, tmp_path / "other", size=301)
            prepare([source], other, cache, length=LENGTH)
    Path(source.path or "").write_text("something else\n")
    changed = prepare([source], tokenizer, cache, length=LENGTH)
    assert changed.statistics.num_documents == 1


def test_large_vocabularies_need_more_bytes(
    source: Source, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = prepare([source], tokenizer, tmp_path / "small", length=LENGTH)
    monkeypatch.setattr(tokenizer, "vocabulary_size", 65_537)
    large = prepare([source], tokenizer, tmp_path / "large", length=LENGTH)
    sizes = [
        next((tmp_path / name).glob("*/tokens.bin")).stat().st_size for name in ("small", "large")
    ]
    assert sizes == [small.statistics.num_tokens * 2, small.statistics.num_tokens * 4]
    assert torch.equal(
        small.batch(0, batch_size=8).tokens_BT, large.batch(0, batch_size=8).tokens_BT
    )


def test_interrupted_preparation_starts_again(
    source: Source, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Killed in the middle, by a signal that leaves no time to tidy up."""
    cache, folder = tmp_path / "cache", tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(tokenizer.to_json())
    program = (
        "import os, signal, sys\n"
        "from anyorder.model.tokenizer import Tokenizer\n"
        "from anyorder.training.data import prepare\n"
        "from anyorder.training.readers import Source\n"
        "source = Source(path=sys.argv[1], format='paragraphs')\n"
        "def progress(stage, done, total):\n"
        "    if done > total // 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "prepare([source], Tokenizer.from_folder(sys.argv[2]), sys.argv[3], length=16,\n"
        "        progress=progress)\n"
    )
    command = [sys.executable, "-c", program, str(source.path), str(folder), str(cache)]
    died = subprocess.run(command, capture_output=True, text=True)
    assert died.returncode == -9, died.stderr
    assert [path.name[0] for path in cache.iterdir() if path.is_dir()] == ["."]
    loaded = Tokenizer.from_folder(folder)
    dataset = prepare([source], loaded, cache, length=LENGTH)
    assert dataset.statistics.num_documents == 40
    (store,) = [path for path in cache.iterdir() if path.is_dir()]
    assert store.name[0] != "."
    before = store.stat().st_mtime_ns
    time.sleep(0.01)
    prepare([source], loaded, cache, length=LENGTH)
    assert store.stat().st_mtime_ns == before


def test_disk_full(
    source: Source, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot store .*: No space left on device; free some"):
        prepare([source], tokenizer, tmp_path / "cache", length=LENGTH)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_skipped_lines_are_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "good"}\n' + "bad\n" * 9)
    source = Source(path=str(file), format="jsonl", on_error="skip")
    (statistics,) = prepare(
        [source], tokenizer, tmp_path / "cache", length=LENGTH
    ).statistics.sources
    assert statistics.num_documents == 1 and statistics.num_skipped == 9
    assert len(statistics.problems) == 5 and "line 2 is not valid JSON" in statistics.problems[0]


def test_whole_titles_are_held_out(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "books.jsonl"
    rows = [(title, f"{title} {n}") for title in ("Emma", "Persuasion", "Emma 2") for n in range(9)]
    file.write_text("".join(json.dumps({"title": a, "text": b}) + "\n" for a, b in rows))

    def part(name: Any, **fields: Any) -> list[list[int]]:
        source = Source(path=str(file), format="jsonl", **fields)
        data = prepare([source], tokenizer, tmp_path, length=999, validation=0.01, part=name)
        return pieces(data)

    held_out = [tokenizer.decode(piece) for piece in part("validation", hold_out=("Emma",))]
    assert sorted(held_out) == [f"Emma {n}" for n in range(9)]
    assert len(part("train", hold_out=("Emma",))) == 18
    assert len(part("validation", hold_out=("Emma", "Persuasion"))) == 18
    with pytest.raises(UnknownName, match=r"unknown title to hold out 'Ema'.*did you mean 'Emma'"):
        part("train", hold_out=("Ema",))


def test_files_are_held_out_by_name(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"text of {name}\n\nsecond paragraph of {name}\n")
    for kind, count in (("text", 1), ("paragraphs", 2)):
        source = Source(path=str(tmp_path), format=kind, hold_out=("b.txt",))  # type: ignore[arg-type]
        data = prepare(
            [source], tokenizer, tmp_path / kind, length=999, validation=0.5, part="validation"
        )
        texts = [tokenizer.decode(piece) for piece in pieces(data)]
        assert len(texts) == count and all("b.txt" in text for text in texts)
    with pytest.raises(UserError, match="hold_out does nothing at validation 0"):
        prepare([source], tokenizer, tmp_path, length=999)
