"""A reward in Python of one's own: `reward = {name = "own", function = "module:function"}`.

The function is given a list of `anyorder.core.reward.Answer` and returns one number for each:

    from anyorder.core.reward import Answer, reward_function

    @reward_function
    def politeness(answers: list[Answer]) -> list[float]:
        return [float("please" in answer.text) for answer in answers]

That is code, and a recipe may come from anybody. Therefore the module is imported from where Python
finds modules anyway: neither the recipe's folder nor the current one is added (PYTHONPATH is how
one says that a folder may be used), nothing is installed, and a function that its author has not
marked with `reward_function` is refused: no recipe can call whatever happens to be importable. To
name a module is still to import it, so read what you run. What it returns is checked.
"""

from __future__ import annotations

import math
import pkgutil
import re
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Annotated, cast

from anyorder.core.errors import UserError
from anyorder.core.reward import Answer, Reward, RewardFunction, is_reward_function


@dataclass(frozen=True, kw_only=True)
class Own(Reward):
    """What a Python function of yours says."""

    function: Annotated[str, "module:function, marked with @reward_function"] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._find()

    def judge(self, answers: Seq[Answer]) -> list[float]:
        """See Reward."""
        values = list(self._find()(answers))
        kinds = {type(value) for value in values}
        if len(values) != len(answers) or not kinds <= {int, float, bool}:
            names = ", ".join(sorted(kind.__name__ for kind in kinds)) or "nothing"
            raise UserError(
                f"the reward {self.function} returned {len(values)} values ({names}) for "
                f"{len(answers)} answers; return one number for each."
            )
        if not all(map(math.isfinite, values)):
            raise UserError(f"the reward {self.function} returned a number that is not finite.")
        return [float(value) for value in values]

    def _find(self) -> RewardFunction:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", self.function):
            raise UserError(f"a reward function is written module:function, got {self.function!r}.")
        try:
            found = pkgutil.resolve_name(self.function)
        except ImportError as error:
            raise UserError(
                f"the reward {self.function} cannot be imported: {error}. Is its folder in "
                "PYTHONPATH?"
            ) from None
        except AttributeError:
            module, _, name = self.function.partition(":")
            raise UserError(f"the module {module} has no function {name}.") from None
        if not is_reward_function(found):
            raise UserError(
                f"{self.function} is not marked as a reward; put @reward_function (of "
                "anyorder.core.reward) above it if it is meant to be one."
            )
        return cast(RewardFunction, found)
