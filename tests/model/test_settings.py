"""What the environment decides."""

from __future__ import annotations

from pathlib import Path

import pytest

from anyorder.core.errors import UserError
from anyorder.model.settings import Settings

THREADS = ("0", "-1", "two", "4097", "²")


def test_defaults():
    found = Settings.load({})
    assert found.cache_folder.name == "anyorder"
    assert found.cache_folder.is_absolute()
    assert found.offline is False
    assert found.num_threads is None
    assert found.interprets_kernels is False


def test_values(tmp_path):
    found = Settings.load(
        {
            "ANYORDER_CACHE": str(tmp_path),
            "ANYORDER_OFFLINE": "1",
            "ANYORDER_THREADS": "3",
            "TRITON_INTERPRET": "1",
        }
    )
    assert found == Settings(
        cache_folder=tmp_path, offline=True, num_threads=3, interprets_kernels=True
    )


def test_home_is_expanded_and_relative_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Settings.load({"ANYORDER_CACHE": "~/x"}).cache_folder == Path.home() / "x"
    assert Settings.load({"ANYORDER_CACHE": "x"}).cache_folder == tmp_path / "x"


@pytest.mark.parametrize(
    ("name", "value"),
    [("ANYORDER_OFFLINE", "perhaps"), *(("ANYORDER_THREADS", v) for v in THREADS)],
)
def test_nonsense_is_refused_by_name(name, value):
    with pytest.raises(UserError, match=name):
        Settings.load({name: value})
