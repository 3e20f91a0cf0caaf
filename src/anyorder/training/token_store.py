"""One source's tokens on disk: raw memory-mapped arrays and their statistics, written once.

    tokens.bin      uint16 or uint32 ids of all documents, one behind the other
    targets.bin     uint8 for each token: may it be learnt?
    starts.bin      int64: where each document starts, and at last the number of tokens; of pairs,
                    where each source and each target starts
    keys.bin        uint64 for each document: decides whether it is held out (`key_of`)
    statistics.json

A store's folder appears whole or not at all: it is written beside its place and then renamed, so an
interrupted preparation leaves nothing that could be taken for data.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anyorder.core.errors import UnknownName, UserError
from anyorder.model.download import exclusive
from anyorder.training.documents import Document, Encoder, PairEncoder
from anyorder.training.readers import Problem, Source, read, read_pairs

Progress = Callable[[str, int, int], None]
"""Called with a stage, how much is done and how much there is; equal when the stage ends."""

_VERSION = 2
_KEPT_PROBLEMS = 5


@dataclass(frozen=True, kw_only=True)
class SourceStatistics:
    """What one source came to."""

    name: str
    num_documents: int
    num_tokens: int
    num_targets: int
    num_bytes: int
    """Of the documents' text in UTF-8."""
    num_skipped: int
    problems: tuple[str, ...]
    """The first few lines or rows that were skipped, and why."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenStore:
    """One source's documents as tokens."""

    statistics: SourceStatistics
    tokens: npt.NDArray[np.unsignedinteger]
    targets: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.int64]
    keys: npt.NDArray[np.uint64]


def open_store(
    source: Source,
    encoder: Encoder | PairEncoder,
    folder: Path,
    progress: Progress,
) -> TokenStore:
    """The source's tokens, made now if they are not in `folder` yet. Of pairs, `starts` has two
    entries for each document, first its source's."""
    tokenizer = encoder.tokenizer
    dtype: np.dtype[np.unsignedinteger] = np.dtype(np.uint16)
    if tokenizer.vocabulary_size > 1 << 16:
        dtype = np.dtype(np.uint32)
    place = folder / _name(source, encoder)
    try:
        with exclusive(place):
            if not place.exists():
                _make(source, encoder, place, dtype, progress)
    except OSError as error:
        raise UserError(
            f"cannot store prepared data in {folder}: {error.strerror or error}; free some space "
            "there or name another folder. Nothing half-written is left behind."
        ) from None
    data = json.loads((place / "statistics.json").read_text("utf-8"))
    data["problems"] = tuple(data["problems"])
    return TokenStore(
        statistics=SourceStatistics(**data),
        tokens=np.memmap(place / "tokens.bin", dtype, "r"),
        targets=np.memmap(place / "targets.bin", np.uint8, "r"),
        starts=np.memmap(place / "starts.bin", np.int64, "r"),
        keys=np.memmap(place / "keys.bin", np.uint64, "r"),
    )


def key_of(document: Document, source: Source) -> int:
    """What decides between training and held-out data: the lowest keys are validation."""
    if source.hold_out:
        return 0 if document.title in source.hold_out else 2**64 - 1
    # Without the separator, so that pairs are held out whichever way they are learnt.
    key = document.prompt.removesuffix(source.separator) or document.key
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "little")


def _name(source: Source, encoder: Encoder | PairEncoder) -> str:
    """A hash of everything that the tokens depend on."""
    tokenizer = encoder.tokenizer
    parts = [_VERSION, source.fingerprint(), tokenizer.to_json(), tokenizer.chat_template]
    if isinstance(encoder, PairEncoder):
        parts += ["pairs", encoder.start, encoder.end]
    else:
        parts += [encoder.before, encoder.after]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _make(
    source: Source,
    encoder: Encoder | PairEncoder,
    place: Path,
    dtype: np.dtype[np.unsignedinteger],
    progress: Progress,
) -> None:
    for left_over in place.parent.glob(f".{place.name}-*"):  # of a process that was killed
        shutil.rmtree(left_over)
    scratch = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        statistics = _write(source, encoder, scratch, dtype, progress)
        (scratch / "statistics.json").write_text(json.dumps(asdict(statistics)), "utf-8")
        os.rename(scratch, place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write(
    source: Source,
    encoder: Encoder | PairEncoder,
    folder: Path,
    dtype: np.dtype[np.unsignedinteger],
    progress: Progress,
) -> SourceStatistics:
    problems: list[str] = []
    num_skipped = num_targets = num_bytes = 0

    def problem(message: str) -> None:
        nonlocal num_skipped
        num_skipped += 1
        problems.extend([message] if len(problems) < _KEPT_PROBLEMS else [])

    starts, keys, titles = [0], [], set[str]()
    stage, total = f"tokenising {source.name}", max(source.num_bytes(), 1)
    with contextlib.ExitStack() as stack:
        tokens_file, targets_file = (
            stack.enter_context((folder / name).open("wb"))
            for name in ("tokens.bin", "targets.bin")
        )
        for document in _documents(source, encoder, problem):
            for tokens, targets in _parts(document, encoder):
                tokens_file.write(np.array(tokens, dtype).tobytes())
                targets_file.write(np.array(targets, np.uint8).tobytes())
                starts.append(starts[-1] + len(tokens))
                num_targets += sum(targets)
            keys.append(key_of(document, source))
            titles.add(document.title)
            num_bytes += document.num_bytes
            progress(stage, min(num_bytes, total - 1), total)
        for file in (tokens_file, targets_file):
            file.flush()
            os.fsync(file.fileno())
    if not keys:
        left_out = f"; {num_skipped} were skipped, the first: {problems[0]}" if problems else ""
        raise UserError(f"{source.name} has no documents{left_out}.")
    for title in source.hold_out:
        if title not in titles:
            near = difflib.get_close_matches(title, titles, n=20, cutoff=0.0)
            raise UnknownName("title to hold out", title, near)
    np.array(starts, np.int64).tofile(folder / "starts.bin")
    np.array(keys, np.uint64).tofile(folder / "keys.bin")
    progress(stage, total, total)
    return SourceStatistics(
        name=source.name,
        num_documents=len(keys),
        num_tokens=starts[-1],
        num_targets=num_targets,
        num_bytes=num_bytes,
        num_skipped=num_skipped,
        problems=tuple(problems),
    )


def _documents(
    source: Source, encoder: Encoder | PairEncoder, problem: Problem
) -> Iterator[Document]:
    if isinstance(encoder, PairEncoder):
        return read_pairs(source, problem)
    return read(source, problem)


def _parts(
    document: Document, encoder: Encoder | PairEncoder
) -> Iterator[tuple[list[int], list[bool]]]:
    """Tokens and, for each, whether it may be learnt."""
    if isinstance(encoder, PairEncoder):
        given, learnt = encoder.encode(document)
        yield given, [False] * len(given)
        yield learnt, [False] + [True] * (len(learnt) - 1)
    else:
        yield encoder.encode(document)
