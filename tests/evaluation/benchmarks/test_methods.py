"""Methods alone and in one batch, on tiny networks."""

from __future__ import annotations

from typing import Any

import pytest
from tests.cli.checkpoint import save_checkpoint

from anyorder.core.errors import CheckpointError
from anyorder.core.request import Request
from anyorder.engine.engine import Engine
from anyorder.evaluation.benchmarks import methods
from anyorder.evaluation.benchmarks.method_results import MethodResults

TEXTS = ["one two three four five", "six seven eight nine"]
NAMES = ["autoregressive", "beam_search", "gibbs", "speculative"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_checkpoint(tmp_path_factory.mktemp("models") / "tiny"))


def measure(names: list[str], models: list[str], open_model: Any, rounds: int = 2) -> MethodResults:
    results = MethodResults()
    methods.measure(
        results,
        names,
        models,
        open_model,
        TEXTS,
        rounds=rounds,
        progress=lambda *_: None,
    )
    return results


def test_methods_run_on_the_first_model_that_can(folder: str) -> None:
    found = measure(NAMES, [folder, "another"], lambda name: Engine(folder))
    assert set(found.alone) == {"autoregressive", "beam_search", "speculative"}
    assert {speed.model for speed in found.alone.values()} == {folder}
    assert all(len(speed.tokens_per_second) == 2 for speed in found.alone.values())
    assert found.alone["autoregressive"].tokens_per_pass == 1.0
    assert found.left_out == {"gibbs": "none of the models at hand can do it"}
    batch = found.batches[folder]
    assert batch.methods == ["autoregressive", "beam_search", "speculative"]
    assert len(batch.mixed) == len(batch.one_by_one) == 2 and not batch.differing
    assert set(batch.seconds) == set(batch.methods) and batch.longest is not None
    assert all(len(taken) == 2 for taken in batch.seconds.values())
    assert batch.longest[0] in batch.methods and 1 / 3 <= batch.longest[1] < 1
    assert batch.run_tokens is not None and batch.run_tokens > 1
    assert batch.ratio > 0 and list(found.batches) == [folder]


def test_a_method_alone_has_no_batch(folder: str) -> None:
    assert not measure(["autoregressive"], [folder], Engine, rounds=1).batches


def test_other_tokens_in_company_are_told(folder: str) -> None:
    class Swayed(Engine):
        def generate(self, prompt: Any, **options: Any) -> Any:
            if len(prompt) > methods.REQUESTS_EACH:
                first: Request = prompt[0]
                prompt = [Request(prompt="other", method=first.method), *prompt[1:]]
            return super().generate(prompt, **options)

    found = measure(["autoregressive", "speculative"], [folder], Swayed, rounds=1)
    assert found.batches[folder].differing == ["autoregressive"]


def test_a_method_that_refuses_is_left_out_and_why(folder: str) -> None:
    class Refusing(Engine):
        def generate(self, prompt: Any, **options: Any) -> Any:
            if prompt[0].method == "beam_search":
                Request(prompt="", n=-1)  # raises
            return super().generate(prompt, **options)

    found = measure(["autoregressive", "beam_search"], [folder], Refusing, rounds=1)
    assert list(found.alone) == ["autoregressive"] and "got -1" in found.left_out["beam_search"]


def test_a_further_model_that_writes_no_text_is_passed_over(folder: str) -> None:
    def open_model(name: str) -> Engine:
        if name == "drafter":
            raise CheckpointError("drafter has no tokenizer")
        return Engine(folder)

    found = measure(["autoregressive", "gibbs"], [folder, "drafter"], open_model, rounds=1)
    assert list(found.alone) == ["autoregressive"]
    assert found.left_out == {"gibbs": "none of the models at hand can do it"}
    with pytest.raises(CheckpointError, match="no tokenizer"):
        measure(["autoregressive"], ["drafter", folder], open_model, rounds=1)
