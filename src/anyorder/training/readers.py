"""Reads documents from files: text, JSON lines, chats, parquet, tab-separated pairs, named corpora.

Readers know no tokenizer and keep at most one document in memory (a file of format `text` is one
document). A line that is not valid UTF-8 or JSON, or lacks its field, stops with its number or is
reported and skipped, as `on_error` says. Compressed files are not read.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from anyorder.core.errors import InvalidRequest, UserError
from anyorder.core.options import Range, validate
from anyorder.training import corpora
from anyorder.training.documents import Document
from anyorder.training.planning import plan_text, without_plans

Problem = Callable[[str], None]
"""Called with one line about each thing that was skipped."""

_SUFFIXES = {
    "text": (".txt", ".md", ".rst"),
    "paragraphs": (".txt", ".md", ".rst"),
    "jsonl": (".jsonl", ".ndjson"),
    "chat": (".jsonl", ".ndjson"),
    "parquet": (".parquet",),
    "pairs": (".tsv",),
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where documents come from. A recipe's `[[data]]` tables have these fields."""

    path: Annotated[str | None, "a file, a folder, or a pattern such as data/*.jsonl"] = None
    corpus: Annotated[str | None, "instead of a path: a set from `anyorder data list`"] = None
    format: Annotated[
        Literal["text", "paragraphs", "jsonl", "chat", "parquet", "pairs"],
        "text: a file is a document; paragraphs: blank lines separate documents; jsonl: an object "
        "a line; chat: an object with messages a line; pairs: source, tab, target a line",
    ] = "text"
    text: Annotated[str, "field that holds the text, for jsonl and parquet"] = "text"
    prompt: Annotated[str | None, "field that is only given, for jsonl and parquet"] = None
    messages: Annotated[str, "field that holds a chat's messages"] = "messages"
    separator: Annotated[str, "written between a prompt and its text"] = "\n"
    on_error: Annotated[Literal["stop", "skip"], "what to do about a line that cannot be read"] = (
        "stop"
    )
    plan: Annotated[
        Literal["none", "rules", "tagged"],
        "for planned_diffusion: rules finds what can be written in parallel; tagged: the texts say",
    ] = "none"
    weight: Annotated[
        float | None, Range(1e-6), "share of the tokens, relative to other sources; none: as it is"
    ] = None
    hold_out: Annotated[
        tuple[str, ...],
        "titles of rows, or names of files, that are the validation data, in place of a share of "
        "all documents: whole books, say, whose chapters would give each other away",
    ] = ()

    def __post_init__(self) -> None:
        validate(self)
        if isinstance(self.hold_out, str) or not all(isinstance(t, str) for t in self.hold_out):
            raise InvalidRequest(f"hold_out must be a list of titles, got {self.hold_out!r}.")
        if self.format == "chat" and self.plan != "none":
            raise UserError("a chat has no plans; leave plan out.")
        if (self.path is None) == (self.corpus is None):
            raise UserError("a data source needs either a path or a corpus, and not both.")

    @property
    def name(self) -> str:
        """For messages and statistics."""
        return self.corpus or self.path or ""

    def files(self) -> list[Path]:
        """What is to be read, in order. Raises `UserError` if there is nothing."""
        if self.corpus is not None:
            return [corpora.documents_file(self.corpus)]
        path = Path(self.path or "").expanduser()
        if path.is_file():
            return [path]
        suffixes = _SUFFIXES[self.format]
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix in suffixes)
            kind = f"has no file that ends in {' or '.join(suffixes)}"
        else:
            found = sorted(Path(file) for file in glob.glob(str(path), recursive=True))
            kind = "is no file or folder, and no file matches it"
        found = [file for file in found if file.is_file()]
        if not found:
            raise UserError(f"there is no data: {self.path!r} {kind}.")
        return found

    def num_bytes(self) -> int:
        """Size of the files."""
        return sum(file.stat().st_size for file in self.files())

    def fingerprint(self) -> str:
        """Changes whenever the documents may have changed. Reads the files once."""
        fields = {**asdict(self), "weight": None, "path": None}
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
        for file in self.files():
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()


def read(source: Source, problem: Problem) -> Iterator[Document]:
    """The documents of a source in order; those without any text are left out.

    Raises `UserError` for what cannot be read, or calls `problem` where the source says skip.
    """
    if source.on_error == "stop":
        problem = _stop
    for file in source.files():
        for number, document in enumerate(_read_file(file, source, problem), 1):
            if not document.messages and not document.text.strip():
                continue
            try:
                document = _planned(document, source)
            except UserError as error:
                problem(f"{file} document {number}: {str(error).rstrip('.')}")
            else:
                yield document


def read_pairs(source: Source, problem: Problem) -> Iterator[Document]:
    """The documents of a source, their prompts as they are, without the separator; a prompt that
    is blank is a problem like a line that cannot be read."""
    fields = source.format in ("jsonl", "parquet") and source.prompt is not None
    if source.corpus is None and source.format != "pairs" and not fields:
        raise UserError(
            f"{source.name} is read as {source.format} and holds no pairs; an encoder-decoder "
            "learns from pairs: format = 'pairs', or 'jsonl' or 'parquet' with prompt, the field "
            "of the source."
        )
    if source.on_error == "stop":
        problem = _stop
    plain = dataclasses.replace(source, separator="")
    for number, document in enumerate(read(plain, problem), 1):
        if document.prompt.strip():
            yield document
        elif source.corpus is not None:
            raise UserError(f"{source.corpus} holds no pairs; an encoder-decoder learns from them.")
        else:
            problem(f"{source.name}: pair {number} has an empty source")


def _planned(document: Document, source: Source) -> Document:
    """The document with plans, as the source asks for them."""
    if source.plan == "none":
        return document
    text = plan_text(document.text) if source.plan == "rules" else document.text
    without_plans(text)  # says what is wrong with the tags
    return dataclasses.replace(document, text=text, planned=True)


def _stop(message: str) -> None:
    raise UserError(f"{message}; on_error = 'skip' would leave it out.")


def _read_file(file: Path, source: Source, problem: Problem) -> Iterator[Document]:
    kind = "jsonl" if source.corpus is not None else source.format
    if kind == "text":
        text = "".join(f"{line}\n" for _, line in _lines(file, problem))
        yield Document(text=text, title=file.name)
    elif kind == "paragraphs":
        for document in _paragraphs(file, problem):
            yield dataclasses.replace(document, title=file.name)
    elif kind == "pairs":
        for document in _pairs(file, source, problem):
            yield dataclasses.replace(document, title=file.name)
    else:
        rows = _parquet_rows(file, source) if kind == "parquet" else _json_rows(file, problem)
        convert = _chat if kind == "chat" else _corpus_row if source.corpus else _plain
        for where, row in rows:
            try:
                document = convert(row, source)
            except UserError as error:
                problem(f"{where} {error}")
            else:
                title = row.get("title")
                yield dataclasses.replace(document, title=str(title) if title else file.name)


# ----------------------------------------------------------------------------------------- lines
def _lines(file: Path, problem: Problem) -> Iterator[tuple[int, str]]:
    try:
        with file.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    byte = raw[error.start]
                    problem(f"{file} line {number} is not valid UTF-8 (byte 0x{byte:02x})")
                else:
                    yield number, line.rstrip("\r\n")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}.") from None


def _paragraphs(file: Path, problem: Problem) -> Iterator[Document]:
    lines: list[str] = []
    for _, line in _lines(file, problem):
        if line.strip():
            lines.append(line)
        elif lines:
            yield Document(text="\n".join(lines) + "\n")
            lines = []
    yield Document(text="\n".join(lines) + "\n")


def _pairs(file: Path, source: Source, problem: Problem) -> Iterator[Document]:
    for number, line in _lines(file, problem):
        if not line.strip():
            continue
        parts = line.split("\t")
        if len(parts) != 2:
            problem(f"{file} line {number} has {len(parts) - 1} tabs; a pair has one")
            continue
        yield Document(prompt=parts[0] + source.separator, text=parts[1])


# ------------------------------------------------------------------------------------------ rows
def _json_rows(file: Path, problem: Problem) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in _lines(file, problem):
        if not line.strip():
            continue
        where = f"{file} line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problem(f"{where} is not valid JSON ({str(error)[:80]})")
            continue
        if isinstance(row, dict):
            yield where, row
        else:
            problem(f"{where} holds a {type(row).__name__}; a JSON object is needed")


def _parquet_rows(file: Path, source: Source) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            "reading parquet needs pyarrow; install it with `pip install 'anyorder[parquet]'`."
        ) from None
    wanted = [name for name in (source.text, source.prompt, "title") if name is not None]
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            columns = [name for name in wanted if name in table.schema_arrow.names]
            for batch in table.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file} row {number}", row
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"cannot read {file}: {' '.join(str(error).split())[:160]}.") from None


def _plain(row: Mapping[str, Any], source: Source) -> Document:
    text = _field(row, source.text)
    if source.prompt is None:
        return Document(text=text)
    return Document(prompt=_field(row, source.prompt) + source.separator, text=text)


def _corpus_row(row: Mapping[str, Any], source: Source) -> Document:
    """Our own file: `text`, and `prompt` where the set has pairs."""
    prompt = row["prompt"] + source.separator if "prompt" in row else ""
    return Document(prompt=prompt, text=row["text"])


def _chat(row: Mapping[str, Any], source: Source) -> Document:
    messages = row.get(source.messages)
    if not isinstance(messages, list):
        raise UserError(f"has no list of messages called {source.messages!r}")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise UserError("has a message without a role")
        _field(message, "content")
    if not any(message["role"] == "assistant" for message in messages):
        raise UserError("has no message by the assistant, so nothing to learn")
    return Document(messages=tuple(messages))


def _field(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise UserError(f"has no text called {name!r} (it has {', '.join(sorted(row)) or 'none'})")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"has half of a surrogate pair in {name!r}") from None
    return value
