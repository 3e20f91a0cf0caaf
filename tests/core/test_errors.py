"""The tree of exceptions and the wording of unknown names."""

from __future__ import annotations

import inspect
import re

import pytest

from anyorder.core import errors

FOUND = {
    name: error
    for name, error in inspect.getmembers(errors, inspect.isclass)
    if error.__module__ == errors.__name__
}


def test_users_mistakes_are_value_errors_and_failures_are_not() -> None:
    for error in FOUND.values():
        assert issubclass(error, errors.AnyorderError)
        failures = (errors.AnyorderError, errors.RequestFailed, errors.TrainingStopped)
        mistake = error not in failures
        assert issubclass(error, ValueError) == issubclass(error, errors.UserError) == mistake


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    ([│├└─ ]*)([A-Z]\w+)", line):
            path[len(match[1]) // 4 :] = [match[2]]
            drawn[match[2]] = path[-2] if len(path) > 1 else "Exception"
    assert drawn == {name: error.__bases__[0].__name__ for name, error in FOUND.items()}


@pytest.mark.parametrize(
    ("name", "known", "message"),
    [
        (
            "beam_serch",
            ["speculative", "beam_search"],
            "unknown method 'beam_serch'; did you mean 'beam_search'? methods: beam_search, "
            "speculative.",
        ),
        ("x", ["beam_search"], "unknown method 'x'; methods: beam_search."),
        ("x", [], "unknown method 'x'; there are no methods here."),
        ("a\nb", ["c"], "unknown method 'a\\nb'; methods: c."),
    ],
)
def test_unknown_name(name: str, known: list[str], message: str) -> None:
    assert str(errors.UnknownName("method", name, known)) == message


def test_a_part_of_a_long_name_finds_it() -> None:
    found = errors.UnknownName("model", "SmolLM", ["qwen3-0.6b", "smollm2-135m-instruct"])
    assert "did you mean 'smollm2-135m-instruct'?" in str(found)
    assert "did you mean" not in str(errors.UnknownName("model", "x", ["axe-of-great-length"]))
