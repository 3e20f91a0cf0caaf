"""The target's own lower layers as a drafter: what they propose, and that nothing else changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.same_text import (
    SITUATIONS,
    assert_same_guided_text,
    assert_same_text,
    greedy,
    ids,
)
from tests.tiny import (
    VOCABULARY,
    assert_no_page_is_lost,
    run_out,
    tiny_config,
    tiny_engine,
    tiny_model,
)

from anyorder.core.batch import dense_batch
from anyorder.core.errors import InvalidRequest, UnsupportedMethod
from anyorder.core.request import Request
from anyorder.model.loaded import LoadedModel
from anyorder.model.transformer import Transformer


def options(length: int = 4, acceptance: str = "match", **drafter: Any) -> dict[str, Any]:
    return {
        "drafter": {"name": "early_exit", **drafter},
        "length": length,
        "adaptive": False,
        "acceptance": acceptance,
    }


def lower(num_layers: int, model: LoadedModel) -> LoadedModel:
    """The model with its upper layers cut off."""
    network: Any = model.network
    config = tiny_config(layers=network.config.layers[:num_layers])
    cut = Transformer.random(config, seed=0, dtype=torch.float64)
    cut.load_state_dict(network.state_dict(), strict=False)
    return dataclasses.replace(model, network=cut)


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("num_layers", [1, 2])
def test_writes_the_plain_text(num_layers: int, situation: str) -> None:
    """With lower layers alone, and with all of them, under every control."""
    found = assert_same_text("speculative", options(layers=num_layers), situation)
    for completion in found:
        assert completion.report.exact
        lengths = completion.report.mean_accepted_length
        assert lengths is not None and (num_layers == 1 or lengths > 2)


def test_adapts_its_length_and_writes_the_plain_text() -> None:
    assert_same_text("speculative", {"drafter": {"name": "early_exit"}}, "together")


@pytest.mark.parametrize("situation", SITUATIONS)
def test_all_layers_are_always_right(situation: str) -> None:
    """Whole drafts stay, drawn with the target's numbers or, by the ratio rule, own ones."""
    model = tiny_model(ends=False)
    engine = tiny_engine(model=model, **SITUATIONS[situation])
    cases = [({"temperature": 0.0}, "match"), ({"temperature": 0.9, "top_p": 0.9}, "match")]
    cases += [({"temperature": 1.0, "repetition_penalty": 1.2}, "ratio")]
    handles = [
        engine.submit(
            Request(
                prompt=ids(4, 9),
                method="speculative",
                options=options(layers=2, acceptance=acceptance),
                max_new_tokens=21,
                **controls,
            )
        )
        for controls, acceptance in cases
    ]
    run_out(engine, range(2, 1000, 3) if situation == "preempted" else ())
    for handle in handles:
        completion = handle.result()
        assert completion.report.mean_accepted_length == 5
        drafted = [entry.drafted for entry in completion.trace]
        assert drafted == [False, *[*[True] * 4, False] * 4]
    assert_no_page_is_lost(engine)


def test_proposes_what_the_lower_layers_alone_would_write() -> None:
    """Against the same network with its upper layers cut off, one dense pass a token."""
    model = tiny_model(ends=False)
    cut, length = lower(1, model), 3
    prompt, num_new, total = ids(8, 12), 40, 0
    text = greedy(prompt, num_new)
    num_final, num_checks = len(prompt) + 1, 0
    while num_final < len(text):
        room = min(length, len(text) - num_final - 1)
        draft = greedy(text[:num_final], room, cut)[num_final:]
        right = 0
        while right < room and draft[right] == text[num_final + right]:
            right += 1
        num_final += right + 1
        num_checks += 1
        total += right
    request = Request(
        prompt=prompt,
        method="speculative",
        options=options(length, layers=1),
        max_new_tokens=num_new,
    )
    completion = tiny_engine(model=model).generate(request)
    assert completion.tokens == text[len(prompt) :]
    assert sum(entry.drafted for entry in completion.trace) == total > 0
    assert completion.report.mean_accepted_length == (total + num_checks) / num_checks


def test_stops_after_a_token_that_it_doubts() -> None:
    """Passes of the lower layers, counted by the twin that is cut off."""
    model = tiny_model(ends=False)
    cut, confidence, length = lower(1, model), 0.3, 6
    network: Any = cut.network
    prompt, num_new = ids(8, 12), 30
    text = greedy(prompt, num_new)
    num_final, num_passes = len(prompt) + 1, 1
    while num_final < len(text):
        room, draft = min(length, len(text) - num_final - 1), list[int]()
        while len(draft) < room:
            line = torch.tensor([text[:num_final] + draft])
            logits = network.logits(network.hidden(dense_batch(line))[-1:])
            likeliest, token = logits.softmax(-1).max(-1)
            draft.append(int(token))
            if float(likeliest) < confidence:
                break
        right = 0
        while right < len(draft) and draft[right] == text[num_final + right]:
            right += 1
        num_final += right + 1
        num_passes += len(draft) + 1
    request = Request(
        prompt=prompt,
        method="speculative",
        options=options(length, layers=1, confidence=confidence),
        max_new_tokens=num_new,
    )
    completion = tiny_engine(model=model).generate(request)
    assert completion.tokens == text[len(prompt) :]
    assert completion.report.num_forward_passes == num_passes
    every = {**options(length, layers=1)}
    unsure = dataclasses.replace(request, options=every)
    report = tiny_engine(model=model).generate(unsure).report
    assert report.num_forward_passes > num_passes, "some drafts were cut short"


def test_writes_the_plain_text_under_guides(tmp_path: Path) -> None:
    """A draft may run into the end of what a guide allows, where nothing can follow."""
    assert_same_guided_text("speculative", options(8, layers=2), tmp_path)


def test_drafts_on_the_text_that_is_cached_already() -> None:
    """The lower layers run one token a pass, never the prompt."""

    class Counting:
        def __init__(self, network: Any) -> None:
            self.network = network
            self.shallow: list[int] = []

        def __getattr__(self, name: str) -> Any:
            return getattr(self.network, name)

        def hidden(self, batch: Any, pool: Any) -> Any:
            if batch.num_layers is not None:
                assert batch.num_layers == 1
                self.shallow.append(len(batch.tokens_N))
            return self.network.hidden(batch, pool)

    network: Any = Counting(tiny_model().network)
    engine = tiny_engine(model=dataclasses.replace(tiny_model(), network=network))
    engine.generate(
        Request(
            prompt=ids(1, 50), method="speculative", options=options(layers=1), max_new_tokens=12
        )
    )
    assert network.shallow and set(network.shallow) == {1}
    assert_no_page_is_lost(engine)


def test_ratio_at_confidence_keeps_the_distribution() -> None:
    """Stopping because of what was drawn must not shift what is drawn: chi-square over the second
    token, against its exact probabilities."""
    model = tiny_model(ends=False)
    network: Any = model.network
    prompt, temperature = ids(2, 3), 0.7

    def probabilities(text: list[int]) -> torch.Tensor:
        logits = network.logits(network.hidden(dense_batch(torch.tensor([text])))[-1:])
        return (logits.double() / temperature).softmax(-1)[0]

    first_V = probabilities(prompt)
    second_V = sum(
        (float(first_V[token]) * probabilities([*prompt, token]) for token in range(VOCABULARY)),
        torch.zeros(VOCABULARY, dtype=torch.float64),
    )
    num_samples = 1000
    engine = tiny_engine(model=model)
    request = Request(
        prompt=prompt,
        method="speculative",
        options=options(2, acceptance="ratio", layers=2, confidence=0.2),
        max_new_tokens=3,
        temperature=temperature,
    )
    completions = engine.generate(
        [dataclasses.replace(request, seed=seed) for seed in range(num_samples)]
    )
    counts = torch.zeros(VOCABULARY, dtype=torch.float64)
    for completion in completions:
        counts[completion.tokens[1]] += 1
    expected = second_V * num_samples
    likely = expected >= 5
    rest = (counts[~likely].sum() - expected[~likely].sum()) ** 2 / expected[~likely].sum()
    chi_square = ((counts - expected)[likely] ** 2 / expected[likely]).sum() + rest
    freedom = int(likely.sum())
    # Mean `freedom`, standard deviation sqrt(2 freedom): five of them is about one in a million.
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize(
    ("drafter", "error", "message"),
    [
        ({"layers": 3}, UnsupportedMethod, "a model of 3 layers or more; tiny has 2"),
        ({"layers": 0}, InvalidRequest, "layers must be an integer of at least 1 or none, got 0"),
        ({"confidence": 1.5}, InvalidRequest, "confidence must be a number from 0 to 1, got 1.5"),
    ],
)
def test_bad_options_are_refused(
    drafter: dict[str, Any], error: type[Exception], message: str
) -> None:
    request = Request(prompt=[1], method="speculative", options=options(**drafter))
    with pytest.raises(error, match=message):
        tiny_engine().generate(request)
