"""Options: description, checking, parsing, building, JSON Schema."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyorder.core import lookup
from anyorder.core.drafter import Drafter
from anyorder.core.errors import InvalidRequest, UnknownName, UserError
from anyorder.core.options import (
    Option,
    Part,
    Range,
    build,
    describe,
    json_schema,
    overlay,
    parse,
    validate,
)
from anyorder.drafters.prompt_lookup import PromptLookup
from anyorder.drafters.suffix_automaton import SuffixAutomaton


@dataclass(frozen=True, kw_only=True)
class Everything:
    """One option of every kind."""

    beams: Annotated[int, Range(1, 64), "beams kept"] = 4
    limit: Annotated[int | None, Range(0), "most tokens"] = None
    penalty: Annotated[float, Range(-2, 2), "length penalty"] = 1.0
    free: Annotated[float, "any number"] = 0.5
    early: Annotated[bool, "stop early"] = False
    label: Annotated[str, "a name"] = "x"
    note: Annotated[str | None, "a remark"] = None
    rule: Annotated[Literal["never", "always"], "when"] = "never"
    mood: Annotated[Literal["good", "bad"] | None, "how"] = None
    widths: Annotated[tuple[int, ...], "any JSON"] = (1, 2)
    either: Annotated[int | str, "two types: any JSON"] = 0
    names: Annotated[list[str], "made by a factory"] = field(default_factory=list)
    hidden: int = 7

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, kw_only=True)
class Required:
    """An option without a default."""

    size: Annotated[int, Range(1), "block size"]


OPTIONS = {option.name: option for option in describe(Everything)}


def test_describe_reads_kind_bounds_choices_and_default() -> None:
    assert list(OPTIONS) == [name for name in Everything.__dataclass_fields__ if name != "hidden"]
    assert OPTIONS["beams"] == Option(
        name="beams",
        kind=int,
        optional=False,
        default=4,
        bounds=Range(1, 64),
        choices=(),
        description="beams kept",
    )
    assert OPTIONS["limit"].optional and OPTIONS["limit"].kind is int
    assert OPTIONS["rule"].choices == ("never", "always") and OPTIONS["rule"].kind is str
    assert OPTIONS["mood"].choices == ("good", "bad") and OPTIONS["mood"].optional
    assert OPTIONS["either"].kind is object and not OPTIONS["either"].optional
    assert OPTIONS["names"].default == []
    assert describe(Everything) is describe(Everything)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("beams", "an integer from 1 to 64"),
        ("limit", "an integer of at least 0 or none"),
        ("penalty", "a number from -2 to 2"),
        ("free", "a number"),
        ("early", "true or false"),
        ("label", "text"),
        ("note", "text or none"),
        ("rule", "one of never, always"),
        ("mood", "one of good, bad or none"),
    ],
)
def test_allowed_in_words(name: str, words: str) -> None:
    assert OPTIONS[name].allowed == words


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beams", 0),
        ("beams", 65),
        ("beams", 1.0),
        ("beams", True),
        ("beams", "4"),
        ("beams", None),
        ("limit", -1),
        ("penalty", math.nan),
        ("penalty", math.inf),
        ("penalty", -2.0001),
        ("penalty", False),
        ("free", "1"),
        ("early", 1),
        ("label", None),
        ("label", b"x"),
        ("note", 3),
        ("rule", "sometimes"),
        ("rule", None),
        ("mood", "ugly"),
    ],
)
def test_bad_values_are_refused_in_one_line(name: str, value: object) -> None:
    option = OPTIONS[name]
    for attempt in (
        lambda: option.check(value),
        lambda: build(Everything, {name: value}),
        lambda: Everything(**{name: value}),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidRequest) as caught:
            attempt()
        assert str(caught.value) == f"{name} must be {option.allowed}, got {value!r}."


@pytest.mark.parametrize(
    ("name", "value", "result"),
    [
        ("beams", 1, 1),
        ("beams", 64, 64),
        ("limit", None, None),
        ("limit", 10**30, 10**30),
        ("penalty", -2, -2.0),
        ("penalty", 2, 2.0),
        ("free", math.inf, math.inf),
        ("mood", None, None),
        ("widths", [3], [3]),
    ],
)
def test_good_values_take_the_fields_type(name: str, value: object, result: object) -> None:
    checked = OPTIONS[name].check(value)
    assert checked == result and type(checked) is type(result)
    assert getattr(build(Everything, {name: value}), name) == result


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("beams=7", 7),
        ("limit=none", None),
        ("limit=None", None),
        ("limit=12", 12),
        ("penalty=-1", -1.0),
        ("penalty=1e-3", 0.001),
        ("early=TRUE", True),
        ("early=off", False),
        ("early=1", True),
        ("early=no", False),
        ("label=a=b", "a=b"),
        ("label=", ""),
        ("label=none", "none"),
        ("note=none", None),
        ("rule=always", "always"),
        ("mood=none", None),
        ("widths=[3, 4]", [3, 4]),
    ],
)
def test_parse(text: str, value: object) -> None:
    parsed = parse(Everything, [text])
    assert parsed == {text.partition("=")[0]: value}
    assert type(next(iter(parsed.values()))) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beams", "an option is written name=value, got 'beams'."),
        ("beams=four", "beams must be an integer from 1 to 64, got 'four'."),
        ("beams=4.0", "beams must be an integer from 1 to 64, got '4.0'."),
        ("beams=", "beams must be an integer from 1 to 64, got ''."),
        ("beams=65", "beams must be an integer from 1 to 64, got 65."),
        ("beams=none", "beams must be an integer from 1 to 64, got 'none'."),
        ("penalty=nan", "penalty must be a number from -2 to 2, got nan."),
        ("early=maybe", "early must be true or false, got 'maybe'."),
        ("rule=sometimes", "rule must be one of never, always, got 'sometimes'."),
    ],
)
def test_parse_refuses(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(Everything, [text])
    assert str(caught.value) == message


def test_parse_refuses_malformed_json() -> None:
    with pytest.raises(InvalidRequest, match="widths must be"):
        parse(Everything, ["widths=[3"])


@pytest.mark.parametrize("refuse", [lambda n: parse(Everything, [f"{n}=1"]),
                                    lambda n: build(Everything, {n: 1})])  # fmt: skip
def test_unknown_names_are_refused_with_the_nearest(refuse: Any) -> None:
    with pytest.raises(
        UnknownName, match=r"unknown option 'baems'; did you mean 'beams'\? options"
    ):
        refuse("baems")
    with pytest.raises(UnknownName, match=r"^unknown option 'hidden'"):
        refuse("hidden")
    with pytest.raises(UnknownName, match=r"unknown option 'zzz'; options: beams, early"):
        refuse("zzz")


def test_later_assignments_win() -> None:
    assert parse(Everything, ["beams=2", "early=on", "beams=3"]) == {"beams": 3, "early": True}


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "beams": st.integers(1, 64),
            "limit": st.none() | st.integers(0),
            "penalty": st.floats(-2, 2),
            "free": st.floats(allow_nan=False),
            "early": st.booleans(),
            "label": st.text(),
            "note": st.none() | st.text().filter(lambda text: text.lower() != "none"),
            "rule": st.sampled_from(["never", "always"]),
            "mood": st.sampled_from(["good", "bad", None]),
        },
    )
)
def test_what_is_printed_parses_back(values: dict[str, object]) -> None:
    assignments = [f"{name}={value}" for name, value in values.items()]
    parsed = parse(Everything, assignments)
    assert parsed == values
    assert {name: type(v) for name, v in parsed.items()} == {n: type(v) for n, v in values.items()}
    assert build(Everything, parsed) == Everything(**values)  # type: ignore[arg-type]


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
) | st.sampled_from(["never", "always", "good", "bad"])


@given(st.sampled_from(sorted(OPTIONS)), VALUES)
def test_schema_and_check_agree(name: str, value: object) -> None:
    """A value passes the schema (an implementation not ours) if and only if it passes check()."""
    if isinstance(value, float) and OPTIONS[name].kind is int:
        return  # JSON knows no difference between 1.0 and 1; Python users are told
    try:
        jsonschema.validate({name: value}, json_schema(Everything))
        schema_says = True
    except jsonschema.ValidationError:
        schema_says = False
    try:
        build(Everything, {name: value})
        check_says = True
    except InvalidRequest:
        check_says = False
    assert schema_says == check_says


def test_schema() -> None:
    schema = json_schema(Everything)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["additionalProperties"] is False
    assert schema["properties"]["beams"] == {
        "description": "beams kept",
        "type": "integer",
        "minimum": 1,
        "maximum": 64,
        "default": 4,
    }
    assert schema["properties"]["limit"] == {
        "description": "most tokens",
        "type": ["integer", "null"],
        "minimum": 0,
        "default": None,
    }
    assert schema["properties"]["mood"]["enum"] == ["good", "bad", None]
    assert "type" not in schema["properties"]["widths"]
    assert "default" not in json_schema(Required)["properties"]["size"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"hidden": 1}, schema)


# ------------------------------------------------------------------------- options that are objects
DRAFTERS = "one of " + ", ".join(lookup.names("drafters"))


@dataclass(frozen=True, kw_only=True)
class Whole:
    """An option that is an object with options of its own."""

    drafter: Annotated[Drafter, Part("drafters"), "who proposes"] = field(
        default_factory=lambda: PromptLookup(longest=4)
    )
    length: Annotated[int, Range(1, 64), "how many"] = 3


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("prompt_lookup", PromptLookup()),
        ({"name": "prompt_lookup"}, PromptLookup()),
        ({"name": "prompt_lookup", "longest": 3}, PromptLookup(longest=3)),
        ({"longest": 7}, PromptLookup(longest=7)),  # the default's name, not its options
        ({}, PromptLookup()),
        (PromptLookup(shortest=2), PromptLookup(shortest=2)),
        ({"name": "suffix_automaton", "shortest": 3}, SuffixAutomaton(shortest=3)),
    ],
)
def test_a_part_from_a_name_a_mapping_or_an_instance(value: object, expected: object) -> None:
    assert build(Whole, {"drafter": value}).drafter == expected
    assert build(Whole, {}).drafter == PromptLookup(longest=4)


def test_an_instance_is_passed_on_as_it_is() -> None:
    part = PromptLookup(longest=2)
    assert build(Whole, {"drafter": part}).drafter is part


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (3, InvalidRequest, f"drafter must be {DRAFTERS}, got 3."),
        (None, InvalidRequest, f"drafter must be {DRAFTERS}, got None."),
        ({"name": 3}, InvalidRequest, f"drafter must be {DRAFTERS}, got 3."),
        ("promt_lookup", UnknownName, "unknown drafter 'promt_lookup'; did you mean "),
        ({"name": "nobody"}, UnknownName, "unknown drafter 'nobody'; drafters: "),
        ({"longst": 3}, UnknownName, "unknown prompt_lookup option 'longst'; did you mean "),
        ({"name": "prompt_lookup", "longest": 17}, InvalidRequest,
         "longest must be an integer from 1 to 16, got 17."),
        ({"name": "prompt_lookup", "longest": "3"}, InvalidRequest,
         "longest must be an integer from 1 to 16, got '3'."),
    ],
)  # fmt: skip
def test_bad_parts_are_refused(value: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        build(Whole, {"drafter": value})
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        (["drafter=suffix_automaton"], SuffixAutomaton()),
        (["drafter.longest=3"], PromptLookup(longest=3)),
        (["drafter=suffix_automaton", "drafter.shortest=2"], SuffixAutomaton(shortest=2)),
        (["drafter.shortest=2", "drafter=suffix_automaton", "drafter.remember=0"],
         SuffixAutomaton(shortest=2, remember=0)),
        (["drafter.longest=3", "drafter.longest=4"], PromptLookup(longest=4)),
        (['drafter={"name": "prompt_lookup", "longest": 3}'], PromptLookup(longest=3)),
        (['drafter={"name": "prompt_lookup", "longest": 3}', "drafter.shortest=2"],
         PromptLookup(longest=3, shortest=2)),
        (['drafter={"longest": 3}', "drafter.shortest=2"], PromptLookup(longest=3, shortest=2)),
    ],
)  # fmt: skip
def test_parts_on_a_command_line(assignments: list[str], expected: object) -> None:
    parsed = parse(Whole, ["length=5", *assignments])
    assert parsed["length"] == 5
    assert build(Whole, parsed) == Whole(length=5, drafter=expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        ("drafter=nobody", "unknown drafter 'nobody'; drafters: "),
        ("drafter.longst=3", "unknown prompt_lookup option 'longst'; did you mean 'longest'?"),
        ("drafter.longest=many", "longest must be an integer from 1 to 16, got 'many'."),
        ("drafter.nodes=999", "nodes must be an integer from 1 to 256, got 999."),
        ("drafter.longest=99", "longest must be an integer from 1 to 16, got 99."),
        ("length.longest=3", "unknown option 'length.longest'"),
        ("drafer.longest=3", "unknown option 'drafer.longest'"),
        ("drafter={3", f"drafter must be {DRAFTERS}, got '{{3'."),
        ("drafter.longest", "an option is written name=value, got 'drafter.longest'."),
        ('drafter={"name": 3}', f"drafter must be {DRAFTERS}, got 3."),
        ('drafter={"name": 3} drafter.longest=3', f"drafter must be {DRAFTERS}, got 3."),
        ("drafter=nobody drafter.longest=3", "unknown drafter 'nobody'; drafters: "),
    ],
)
def test_bad_parts_on_a_command_line(assignments: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(Whole, assignments.replace(" drafter.", "\n drafter.").split("\n "))
    assert str(caught.value).startswith(message)


def test_whose_options_they_are_may_be_found_out_later() -> None:
    """A model's own part, or one given after all, or the method's."""
    parsed = parse(Whole, ["drafter.nodes=8"])
    for default in ("eagle", {"name": "eagle", "top": 2, "nodes": 3}):
        found = build(Whole, overlay(Whole, {"drafter": default, "length": 7}, parsed))
        drafter: Any = found.drafter
        assert (lookup.name_of(drafter), drafter.nodes, found.length) == ("eagle", 8, 7)
        assert drafter.top == (4 if default == "eagle" else 2)
    with pytest.raises(UserError, match="unknown prompt_lookup option 'nodes'"):
        build(Whole, overlay(Whole, {}, parsed))
    with pytest.raises(UserError, match="unknown suffix_automaton option 'nodes'"):
        build(Whole, overlay(Whole, {"drafter": "suffix_automaton"}, parsed))
    named = overlay(Whole, {"drafter": "eagle"}, {"drafter": {"name": "medusa", "nodes": 5}})
    assert lookup.name_of(build(Whole, named).drafter) == "medusa"
    unnamed = overlay(Whole, {"drafter": "eagle"}, {"drafter": {"nodes": 5}})
    assert lookup.name_of(build(Whole, unnamed).drafter) == "eagle"
    other = overlay(Whole, {"drafter": {"name": "eagle", "nodes": 5}}, {"drafter": "medusa"})
    assert lookup.name_of(build(Whole, other).drafter) == "medusa"


def test_schema_of_a_part() -> None:
    schema = json_schema(Whole)
    jsonschema.Draft202012Validator.check_schema(schema)
    entry = schema["properties"]["drafter"]
    assert entry["default"] == "prompt_lookup"
    names = [item["properties"]["name"]["const"] for item in entry["anyOf"][1:]]
    assert names == entry["anyOf"][0]["enum"] == list(lookup.names("drafters"))


@pytest.mark.parametrize(
    "value",
    [
        "prompt_lookup",
        "nobody",
        3,
        {"name": "prompt_lookup"},
        {"name": "prompt_lookup", "longest": 3},
        {"name": "prompt_lookup", "longest": 99},
        {"name": "prompt_lookup", "remember": 3},
        {"name": "suffix_automaton", "remember": 3},
        {"name": "nobody"},
    ],
)
def test_schema_and_check_of_a_part_agree(value: object) -> None:
    try:
        jsonschema.validate({"drafter": value}, json_schema(Whole))
        schema_says = True
    except jsonschema.ValidationError:
        schema_says = False
    try:
        build(Whole, {"drafter": value})
        check_says = True
    except UserError:
        check_says = False
    assert schema_says == check_says
