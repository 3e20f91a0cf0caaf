"""Collections stay away while asked to, and come back as they were."""

import gc
import subprocess
import sys

import pytest

from anyorder.core.garbage import uncollected


@pytest.fixture
def unfrozen():
    """What is frozen here would stay so for all other tests."""
    yield
    gc.unfreeze()


@pytest.mark.parametrize("collects", [True, False])
def test_collections_pause_and_come_back_as_they_were(collects):
    before = gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        with pytest.raises(KeyError), uncollected():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() == collects
    finally:
        (gc.enable if before else gc.disable)()


def test_only_what_is_for_good_is_frozen(unfrozen):
    frozen = gc.get_freeze_count()
    with uncollected():
        pass
    assert gc.get_freeze_count() == frozen
    with uncollected(for_good=True):
        kept = [[]]
    assert gc.get_freeze_count() > frozen and kept not in gc.get_objects()


def test_importing_torch_is_for_good_unless_somebody_did_before():
    show = "import gc, anyorder; anyorder.Engine; print(gc.get_freeze_count() > 100_000)"
    for code, frozen in ((show, "True"), (f"import torch; {show}", "False")):
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert ran.stdout.strip() == frozen, ran.stderr
