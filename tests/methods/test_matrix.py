"""Every method with every feature: honoured, or refused by one precise error. See matrix.py."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import pytest
from tests.methods.matrix import (
    FEATURES,
    GROUPS,
    LENGTH,
    METHODS,
    PROPERTIES,
    WORDS,
    Trial,
    label,
    token,
    tried,
)

from anyorder.core import lookup
from anyorder.core.method import Method
from anyorder.core.request import Request
from anyorder.engine.run import Run

FIELDS = {field.name for field in dataclasses.fields(Request)}


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.__name__)
@pytest.mark.parametrize("method", METHODS)
def test_is_honoured_or_refused(method: str, feature: Callable[[Trial], bool]) -> None:
    outcome = tried(method, feature)
    if outcome is False:
        assert feature in PROPERTIES, f"{method} ignores {label(feature)}"
    if isinstance(outcome, str):
        assert "\n" not in outcome and outcome.endswith("."), outcome
        named = {method, *re.findall(r"\w+", label(feature))} & set(re.findall(r"\w+", outcome))
        assert named, outcome
        assert re.search(r"; |: |, or |Methods", outcome), f"says not what to do: {outcome}"


def test_autoregressive_decoding_refuses_nothing_but_infilling() -> None:
    refused = {f.__name__ for f in FEATURES if isinstance(tried("autoregressive", f), str)}
    assert refused == {"infilling"}


def test_methods_that_fill_canvases_say_so() -> None:
    (infilling,) = (feature for feature in FEATURES if label(feature) == "`canvas`")
    for method in METHODS:
        cls: type[Method] = lookup.find("methods", method, kind="method")
        assert (tried(method, infilling) is True) == cls.fills_canvas


def test_labels_are_fields_of_a_request() -> None:
    labels = [label(feature) for features in GROUPS.values() for feature in features]
    assert len(set(labels)) == len(labels)
    quoted = {name for text in labels for name in re.findall(r"`(\w+)`", text)}
    assert quoted <= FIELDS | {"score"}


def test_the_known_network_says_what_it_is_meant_to() -> None:
    found = Trial(method="autoregressive").generate(logprobs=4)
    for entry in found.trace:
        told = {told: probability for told, probability in entry.alternatives}
        assert told == pytest.approx({token(w): p for w, p in WORDS.items()}, abs=1e-4)
    assert found.text == "a" * LENGTH


def test_a_control_that_is_dropped_on_the_way_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trial fails where the method's request never arrives."""
    blind = property(
        lambda self: dataclasses.replace(
            self.prepared.request, top_k=0, presence_penalty=0.0, logit_bias={}, logprobs=0
        )
    )
    monkeypatch.setattr(Run, "request", blind)
    trial = Trial(method="autoregressive")
    for feature in FEATURES:
        if feature.__name__ in ("top_k", "presence_penalty", "logit_bias", "logprobs"):
            with pytest.raises((AssertionError, ValueError)):
                feature(trial)
