"""Work for processes of which one fails while another waits."""

from __future__ import annotations

import time
from pathlib import Path

from anyorder.core import errors


def give_up(rank: int, size: int, meeting: Path, kind: str) -> str:
    """Process 1 raises the error with this name."""
    if rank == 1:
        raise getattr(errors, kind)(f"process {rank} of {size} gives up")
    time.sleep(100)
    return "never reached"
