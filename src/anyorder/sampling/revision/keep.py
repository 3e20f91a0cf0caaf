"""What stands stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from anyorder.sampling.revision import Revision


@dataclass(frozen=True, kw_only=True)
class Keep(Revision):
    """Take nothing back."""

    revises: ClassVar[bool] = False
    needs_steps: ClassVar[bool] = False

    def goes_on(self, number: int, steps: int | None, num_full: int) -> bool:
        """See Revision."""
        return False
