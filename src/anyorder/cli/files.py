"""Files that the user names, and stdin: what cannot be read or written is the user's mistake."""

from __future__ import annotations

import sys
from pathlib import Path

from anyorder.core.errors import UserError


def read_text(path: Path) -> str:
    """The text of a UTF-8 file."""
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {str(path)!r}: {_reason(error)}.") from None


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file."""
    try:
        path.write_text(text, "utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {str(path)!r}: {_reason(error)}.") from None


def text_argument(text: str | None, what: str) -> str:
    """A text given as an argument, or stdin's if it is absent or "-"."""
    if text is None and sys.stdin.isatty():
        raise UserError(f"no {what}: give one in quotes, or pipe it in.")
    if text is None or text == "-":
        try:
            text = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"the {what} on stdin is not UTF-8 text.") from None
        return text.removesuffix("\n").removesuffix("\r")
    if not text.isprintable():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"the {what} is not UTF-8 text.") from None
    return text


def text_or_file(value: str, *, marks: str) -> str:
    """The content of a file, or the value itself if it is none and holds one of `marks`."""
    path = Path(value)
    if any(mark in value for mark in marks) and not _is_file(path):
        return value
    return read_text(path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a name, or with a NUL: a text, not a file
        return False


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
