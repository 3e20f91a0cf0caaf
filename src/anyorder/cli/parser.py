"""Argument parsing whose mistakes are UserErrors: one line, with the nearest flag."""

from __future__ import annotations

import argparse
import difflib
from typing import NoReturn

from anyorder.core.errors import UserError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError and offers the flag that was meant."""

    def __init__(
        self, *, prog: str, description: str, usage: str | None = None, epilog: str | None = None
    ) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        raise UserError(f"{message}; see `{self.prog} --help`.")

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """The parsed arguments; UserError for any that do not belong here."""
        parsed, unknown = self.parse_known_args(arguments)
        for argument in unknown:
            if not argument.startswith("-"):
                raise UserError(
                    f"unexpected argument {argument!r}; text of several words goes in quotes, see "
                    f"`{self.prog} --help`."
                )
            flag = argument.partition("=")[0]
            nearest = difflib.get_close_matches(flag, self._option_string_actions, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "there is none like it;"
            raise UserError(f"unknown flag {flag!r}; {hint} see `{self.prog} --help`.")
        return parsed
