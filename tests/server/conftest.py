"""A live server on a tiny model, on a free port of this machine."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
from tests.cli.checkpoint import save_checkpoint

from anyorder.engine.engine import Engine
from anyorder.model.loaded import LoadedModel, load
from anyorder.server.app import ServerOptions, create_app
from anyorder.server.limits import Limits
from anyorder.server.process import Server, listen
from anyorder.server.service import Service


@dataclasses.dataclass(frozen=True, kw_only=True)
class Live:
    """A server that runs in this process."""

    url: str
    service: Service
    http: httpx2.Client

    def client(self, key: str = "none", **options: Any) -> openai.OpenAI:
        """OpenAI's own client, which does not retry unless told."""
        options = {"max_retries": 0, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, **options)

    @property
    def num_free(self) -> int:
        """Pages of the engine that nobody holds."""
        return self.service.engine.roles["target"].store.num_available

    def wait_until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Fails if it does not come true."""
        deadline = time.perf_counter() + seconds
        while not condition():
            assert time.perf_counter() < deadline, "it did not come true in time"
            time.sleep(0.002)


@contextmanager
def running(
    model: LoadedModel, limits: dict[str, Any] | None = None, **options: Any
) -> Iterator[Live]:
    """A server until the block ends."""
    engine = Engine(model, cache_tokens=16384)
    app = create_app(engine, ServerOptions(limits=Limits(**(limits or {})), **options))
    listener = listen("127.0.0.1", 0)
    server = Server(app)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        time.sleep(0.005)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        with httpx2.Client(base_url=url, timeout=60) as http:
            yield Live(url=url, service=app.state.service, http=http)
    finally:
        server.should_exit = True
        thread.join()


CONTEXT = 1024
TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message.content %}{{ message['content'] }}{% endif %}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint, with a chat template that knows tools."""
    made = save_checkpoint(tmp_path_factory.mktemp("models") / "tiny")
    config = made / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": TEMPLATE}))
    config = made / "config.json"
    longer = {**json.loads(config.read_text()), "max_position_embeddings": CONTEXT}
    config.write_text(json.dumps(longer))
    return made


@pytest.fixture(scope="session")
def model(folder: Path) -> LoadedModel:
    """The tiny checkpoint, loaded."""
    torch.set_num_threads(1)
    return load(folder)


@pytest.fixture(scope="session")
def live(model: LoadedModel) -> Iterator[Live]:
    """A server without keys and with the usual limits."""
    with running(model) as server:
        yield server


@pytest.fixture(scope="session")
def client(live: Live) -> Iterator[openai.OpenAI]:
    """OpenAI's client for it."""
    with live.client() as made:
        yield made
