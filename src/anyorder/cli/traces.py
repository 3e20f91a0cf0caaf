"""Writes the trace of an answer as a picture, a page or data, by the file's ending."""

from __future__ import annotations

import json
from pathlib import Path

from anyorder.cli.files import write_text
from anyorder.core.errors import UserError
from anyorder.core.request import Completion

ENDINGS = (".svg", ".html", ".json")


def trace_path(text: str) -> Path:
    """The file to write, refused before any work is done if it cannot be one."""
    path = Path(text)
    if path.suffix not in ENDINGS:
        raise UserError(f"a trace goes to a file ending in {', '.join(ENDINGS)}; got {text!r}.")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {text!r}: there is no folder {str(path.parent)!r}.")
    return path


def write_trace(path: Path, completion: Completion, *, model: str, prompt: str) -> None:
    """Draw or dump how the answer came about."""
    from anyorder.evaluation.pictures import trace_svg
    from anyorder.evaluation.replay import replay_html

    if path.suffix == ".json":
        data = {"model": model, "prompt": prompt, **completion.to_dict()}
        text = json.dumps(data, ensure_ascii=False, indent=1) + "\n"
    elif path.suffix == ".html":
        text = replay_html([completion], models=[model], prompt=prompt)
    else:
        text = trace_svg(completion, model=model, prompt=prompt)
    write_text(path, text)
