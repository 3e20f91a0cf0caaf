"""docs/serving.md: its examples run, its table of limits is complete, its endpoints exist."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import subprocess
from pathlib import Path

from starlette.routing import Route
from tests.server.conftest import Live

from anyorder.cli.request_flags import flag_of
from anyorder.core.options import describe
from anyorder.server import app as application
from anyorder.server.limits import Limits

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text("utf-8")
ADDRESS = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    """Fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_sdks_example(live: Live) -> None:
    (example,) = blocks("python")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        program = compile(example.replace(ADDRESS, live.url), "docs/serving.md", "exec")
        exec(program, {})
    assert said.getvalue()


def test_curls_examples(live: Live) -> None:
    commands = [block for block in blocks("bash") if block.startswith("curl")]
    assert len(commands) == 2
    for command in commands:
        words = shlex.split(command.replace(ADDRESS, live.url))
        answer = subprocess.run([*words, "-s"], capture_output=True, text=True, check=True).stdout
        if "-N" in words:
            assert '"type":"reveal"' in answer and answer.endswith("data: [DONE]\n\n")
        else:
            assert json.loads(answer)["choices"][0]["message"]["role"] == "assistant"


def test_every_limit_and_endpoint_is_named() -> None:
    for option in describe(Limits):
        assert f"`{flag_of(option.name)}`" in PAGE
    paths = {
        route.path.replace("{model:path}", "{id}")
        for router in application.ROUTERS
        for route in router.routes
        if isinstance(route, Route)
    }
    assert all(f"{path}`" in PAGE for path in paths), paths
