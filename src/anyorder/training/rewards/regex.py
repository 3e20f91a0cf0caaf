"""Does the answer match a regular expression (Python's `re`, in full)?

`{reference}` in the pattern stands for the reference's text. Python's matcher can take exponential
time on patterns such as (a+)+b; write another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Annotated

from anyorder.core.errors import UserError
from anyorder.core.reward import Answer, Reward

_REFERENCE = "{reference}"


@dataclass(frozen=True, kw_only=True)
class Regex(Reward):
    """1 for a text that matches, 0 for any other."""

    pattern: Annotated[str, "what the whole text must match, spaces at the ends aside"] = ".+"

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            re.compile(self.pattern.replace(_REFERENCE, ""))
        except re.error as error:
            raise UserError(f"{self.pattern!r} is no regular expression: {error}.") from None

    def judge(self, answers: Seq[Answer]) -> list[float]:
        """See Reward."""
        return [float(self._matches(answer)) for answer in answers]

    def _matches(self, answer: Answer) -> bool:
        pattern = self.pattern.replace(_REFERENCE, re.escape(answer.reference.strip()))
        return re.fullmatch(pattern, answer.text.strip(), re.DOTALL) is not None
