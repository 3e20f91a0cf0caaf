"""Numbers given as flags."""

from __future__ import annotations

from anyorder.core.errors import InvalidRequest


def whole_number(flag: str, text: str | None, default: int, *, least: int = 1) -> int:
    """The integer that a flag spells, or the default where it was not given."""
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or not least <= int(text) < 2**63:
        raise InvalidRequest(f"{flag} must be an integer of at least {least}, got {text!r}.")
    return int(text)
