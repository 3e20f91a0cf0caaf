"""How often a tick waits for the device: as often for many requests as for one.

There is no GPU here: the sampler is made to take the way that it takes on one, and what would copy
from the device is counted by patching torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.engine import ragged_twin
from tests.methods.test_contract import contract_engine

from anyorder.core.request import Request
from anyorder.engine import checks
from anyorder.model.backends import ragged
from anyorder.sampling import sampler

COPIES = ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")
GUIDED = {"guidance_scale": 1.7, "negative_prompt": [5, 6, 7]}
DRAFTS = {"drafter": "draft_model", "adaptive": False, "length": 3}
REQUESTS = {
    "greedy": Request(prompt=[1], logprobs=2),
    "sampled": Request(prompt=[1], temperature=0.8, top_p=0.9),
    "penalties": Request(prompt=[1], temperature=0.8, repetition_penalty=1.2),
    "guidance": Request(prompt=[1], temperature=0.8, **GUIDED),
    "drafts": Request(prompt=[1], method="speculative", options=DRAFTS),
    "guided drafts": Request(prompt=[1], method="speculative", options=DRAFTS, **GUIDED),
    "masks": Request(prompt=[1], method="masked_diffusion", options={"steps": 6}),
    "blocks": Request(prompt=[1], method="block_diffusion"),
    "draws": Request(prompt=[1], method="gibbs", temperature=1.0),
}


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of what copied, outside of kernels."""
    found: list[str] = []
    inside: list[bool] = []

    def counted(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: torch.Tensor, *arguments: Any) -> Any:
            if not inside:
                found.append(name)
            return plain(self, *arguments)

        return run

    def attend(*arguments: Any) -> torch.Tensor:
        inside.append(True)
        mixed = ragged_twin.attend(*arguments)
        inside.clear()
        return mixed

    monkeypatch.setattr(ragged, "serves", lambda device, dtype: True)
    monkeypatch.setattr(ragged, "attend", attend)
    for module in (sampler, checks):
        monkeypatch.setattr(module, "on_host", lambda logits: False)
    for name in COPIES:
        monkeypatch.setattr(torch.Tensor, name, counted(name, getattr(torch.Tensor, name)))
    yield found


def most_of_a_tick(request: Request, num: int, copies: list[str]) -> int:
    engine = contract_engine()
    handles = [
        engine.submit(
            dataclasses.replace(request, prompt=[seed + 1, 7, 8], seed=seed, max_new_tokens=12)
        )
        for seed in range(num)
    ]
    most = 0
    while True:
        copies.clear()
        if not engine.tick():
            break
        most = max(most, len(copies))
    assert all(handle.result().tokens for handle in handles)
    return most


@pytest.mark.parametrize("name", REQUESTS)
def test_copies_to_the_host_do_not_grow_with_the_batch(name: str, copies: list[str]) -> None:
    one, many = (most_of_a_tick(REQUESTS[name], num, copies) for num in (1, 7))
    assert 0 < many <= one + 1 <= 4, (one, many)
