"""Names are files: listing imports nothing, finding imports one module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import anyorder
from anyorder.core import lookup
from anyorder.core.errors import UnknownName
from anyorder.core.method import Method


def test_names_are_the_folders_files() -> None:
    folder = Path(lookup.__file__).parent.parent / "methods"
    files = sorted(file.stem for file in folder.glob("*.py") if file.stem != "__init__")
    assert lookup.names("methods") == tuple(files)
    assert "autoregressive" in files
    assert lookup.names("training/no_such_folder") == ()


def test_every_name_is_found_as_its_class() -> None:
    for name in lookup.names("methods"):
        found = lookup.find("methods", name, kind="method")
        assert issubclass(found, Method) and found.__module__ == f"anyorder.methods.{name}"
        assert found.__name__.lower() == name.replace("_", "")


def test_a_broken_file_harms_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder below a folder, as for objectives."""
    folder = tmp_path / "plants" / "deep"
    folder.mkdir(parents=True)
    (folder / "red_rose.py").write_text("class RedRose: pass")
    (folder / "weed.py").write_text("raise RuntimeError('broken')")
    monkeypatch.setattr(lookup, "ROOT", tmp_path)
    monkeypatch.setattr(anyorder, "__path__", [*anyorder.__path__, str(tmp_path)])
    assert lookup.names("plants/deep") == ("red_rose", "weed")
    assert lookup.find("plants/deep", "red_rose", kind="plant").__name__ == "RedRose"
    with pytest.raises(RuntimeError, match="broken"):
        lookup.find("plants/deep", "weed", kind="plant")


@pytest.mark.parametrize("name", ["autoregresive", "", "../core/errors", "__init__", "os"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UnknownName, match=r"^unknown method .*methods: autoregressive"):
        lookup.find("methods", name, kind="method")


def test_listing_imports_nothing() -> None:
    program = (
        "import sys; from anyorder.core import lookup; assert lookup.names('methods');"
        "assert not [m for m in sys.modules if m.startswith('anyorder.methods')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
