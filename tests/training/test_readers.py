"""Readers against files written by hand, by the json module and by pyarrow."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from anyorder.core.errors import UnknownName, UserError
from anyorder.core.options import build
from anyorder.training.documents import Document
from anyorder.training.readers import Source, read


def documents(path: Path, **fields: Any) -> list[Document]:
    """What a source of the path gives; nothing may be skipped."""
    problems: list[str] = []
    found = list(read(Source(path=str(path), **fields), problems.append))
    assert not problems
    return found


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


# ------------------------------------------------------------------------------------------- text
def test_a_file_is_a_document(tmp_path: Path) -> None:
    texts = {"b.txt": "zwei\r\nEnde", "a.txt": "\ufeffnaïve\n\neins\n", "c.csv": "x"}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode())
    (tmp_path / "empty.txt").write_text(" \n")
    assert [d.text for d in documents(tmp_path)] == ["naïve\n\neins\n", "zwei\nEnde\n"]
    assert [d.text for d in documents(tmp_path / "b*")] == ["zwei\nEnde\n"]


def test_paragraphs(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("\n\none\nstill one\n \n\ntwo\n\n\nthree")
    found = [document.text for document in documents(file, format="paragraphs")]
    assert found == ["one\nstill one\n", "two\n", "three\n"]


def test_pairs(tmp_path: Path) -> None:
    file = tmp_path / "a.tsv"
    file.write_text("house\tHaus\n\nthe dog\tder Hund\n")
    found = documents(file, format="pairs", separator=" => ")
    assert [(d.prompt, d.text) for d in found] == [
        ("house => ", "Haus"),
        ("the dog => ", "der Hund"),
    ]
    assert found[0].key == "house => " and found[0].num_bytes == len("house => Haus")


# ------------------------------------------------------------------------------------------- rows
def test_json_lines(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"body": "ü\n", "q": "why?"}, {"body": "", "q": "x"})
    assert [d.text for d in documents(file, format="jsonl", text="body")] == ["ü\n"]
    (found,) = documents(file, format="jsonl", text="body", prompt="q")
    assert (found.prompt, found.text) == ("why?\n", "ü\n")


def test_chat(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    (found,) = documents(lines(tmp_path / "a.jsonl", {"messages": chat}), format="chat")
    assert list(found.messages) == chat and not found.text
    assert found.num_bytes == len("hihello")


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": ["a", None, "c"], "q": ["1", "2", "3"], "other": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "a.parquet")
    source = Source(path=str(tmp_path), format="parquet", prompt="q", on_error="skip")
    problems: list[str] = []
    found = [(document.prompt, document.text) for document in read(source, problems.append)]
    assert found == [("1\n", "a"), ("3\n", "c")]
    assert len(problems) == 1 and "row 2 has no text called 'text'" in problems[0]
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"cannot read .*a\.parquet"):
        list(read(source, problems.append))


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"pip install 'anyorder\[parquet\]'"):
        documents(tmp_path, format="parquet")


# -------------------------------------------------------------------------------------- bad lines
NO_JSON = b'{"text": "good"}\n{"text": \n[1]\n{"body": "x"}\n{"text": "\\ud800"}\n{"text": "end"}'
BAD_CHATS = b'{"messages": 3}\n{"messages": [{}]}\n{"messages": [{"role": "user", "content": "x"}]}'


@pytest.mark.parametrize(
    ("format", "data", "good", "complaints"),
    [
        ("text", b"one\n\xfftwo\nthree\n", ["one\nthree\n"], ["line 2 is not valid UTF-8"]),
        (
            "jsonl",
            NO_JSON,
            ["good", "end"],
            [
                "line 2 is not valid JSON",
                "line 3 holds a list",
                "line 4 has no text called 'text' (it has body)",
                "line 5 has half of a surrogate pair",
            ],
        ),
        ("pairs", b"a\tb\nc\nd\te\tf\n", ["b"], ["line 2 has 0 tabs", "line 3 has 2 tabs"]),
        (
            "chat",
            BAD_CHATS,
            [],
            ["line 1 has no list of messages", "line 2 has a message", "line 3 has no message by"],
        ),
    ],
)
def test_bad_lines(
    tmp_path: Path, format: str, data: bytes, good: list[str], complaints: list[str]
) -> None:
    file = tmp_path / "data.txt"
    file.write_bytes(data)
    problems: list[str] = []
    source = build(Source, {"path": str(file), "format": format, "on_error": "skip"})
    assert [document.text for document in read(source, problems.append)] == good
    assert len(problems) == len(complaints)
    for problem, complaint in zip(problems, complaints, strict=True):
        assert problem.startswith(str(file)) and complaint in problem
    source = build(Source, {"path": str(file), "format": format})
    with pytest.raises(UserError) as stopped:
        list(read(source, problems.append))
    assert str(stopped.value).startswith(problems[0]) and "skip" in str(stopped.value)


def test_missing_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no file or folder"):
        documents(tmp_path / "none.txt")
    with pytest.raises(UserError, match=r"has no file that ends in \.jsonl or \.ndjson"):
        documents(tmp_path, format="jsonl")
    with pytest.raises(UserError, match="either a path or a corpus"):
        Source()
    with pytest.raises(UnknownName, match="did you mean 'format'"):
        build(Source, {"path": "x", "formt": "text"})


def test_fingerprint(tmp_path: Path) -> None:
    """Follows the content and the fields, neither the place nor the weight."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text("same")
    first, second = (Source(path=str(tmp_path / name)) for name in ("a", "b"))
    assert first.fingerprint() == second.fingerprint() and first.num_bytes() == 4
    assert first.fingerprint() == Source(path=first.path, weight=2.0).fingerprint()
    assert first.fingerprint() != Source(path=first.path, format="paragraphs").fingerprint()
    (tmp_path / "b" / "x.txt").write_text("sane")
    assert first.fingerprint() != second.fingerprint()


def test_chats_that_begin_alike_stay_together() -> None:
    asked = {"role": "user", "content": "Why?"}
    chats = [Document(messages=(asked, {"role": "assistant", "content": a})) for a in "xy"]
    assert chats[0].key == chats[1].key == "Why?"
    assert Document(messages=({"role": "assistant", "content": "Hello."},)).key == "Hello."
