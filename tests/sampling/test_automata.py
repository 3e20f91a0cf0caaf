"""Automata of guides: the languages are those of `re`, jsonschema, llguidance and enumeration."""

from __future__ import annotations

import itertools
import json
import random
import re

import jsonschema
import numpy as np
import pytest
import torch

from anyorder.core.errors import GuideError
from anyorder.core.request import Guide
from anyorder.sampling.automata import byte_automaton as module
from anyorder.sampling.automata.byte_automaton import ByteAutomaton, byte_automaton
from anyorder.sampling.automata.integers import integers
from anyorder.sampling.automata.json_schema import json_schema_pattern
from anyorder.sampling.automata.pattern import byte_ranges, letters, none_of
from anyorder.sampling.automata.regex import regex_pattern
from anyorder.sampling.canvas_guide import CanvasGuideCompiler
from anyorder.sampling.guide import GuideCompiler
from anyorder.sampling.processors import unpack_bits

END = 0
NUM_IDS = 320


def accepts(automaton: ByteAutomaton, text: str) -> bool:
    state = 1
    for byte in text.encode():
        state = int(automaton.next_SB[state, byte])
    return bool(automaton.accepting_S[state])


def distances(automaton: ByteAutomaton) -> list[int]:
    """Bytes from each state to the end of a text."""
    found = np.where(automaton.accepting_S, 0, 10**6)
    while True:
        shorter = np.minimum(found, found[automaton.next_SB].min(1) + 1)
        if (shorter == found).all():
            return found.tolist()
        found = shorter


def walk(
    automaton: ByteAutomaton, distance: list[int], rng: random.Random, stop: float = 0.3
) -> str:
    """A random text of the language; it hurries after 40 bytes."""
    state, found = 1, bytearray()
    while True:
        if automaton.accepting_S[state] and (rng.random() < stop or len(found) > 60):
            return found.decode()
        choices = [b for b in range(256) if distance[automaton.next_SB[state, b]] < 10**6]
        if not choices:
            return found.decode()
        if len(found) > 40:
            nearest = min(distance[automaton.next_SB[state, b]] for b in choices)
            choices = [b for b in choices if distance[automaton.next_SB[state, b]] == nearest]
        byte = rng.choice(choices)
        found.append(byte)
        state = int(automaton.next_SB[state, byte])


# ------------------------------------------------------------------------------------------ letters
def test_utf8_forms_of_ranges():
    rng = random.Random(0)
    bounds = [0, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF]
    for _ in range(200):
        low, high = sorted(rng.choice(bounds) + rng.randint(-3, 900) for _ in range(2))
        low, high = max(low, 0), min(high, 0x10FFFF)
        if low > high or high - low > 5000:
            continue
        for first, last in letters([(low, high)]).ranges:  # no surrogates
            found = [
                bytes(chosen)
                for sequence in byte_ranges(first, last)
                for chosen in itertools.product(*(range(a, b + 1) for a, b in sequence))
            ]
            assert len(set(found)) == len(found)
            assert set(found) == {chr(code).encode() for code in range(first, last + 1)}


def test_complement():
    assert none_of([(0, 9), (5, 20), (0x10FFFF, 0x10FFFF)]).ranges == (
        (21, 0xD7FF),
        (0xE000, 0x10FFFE),
    )


# -------------------------------------------------------------------------------------------- regex
REGEXES = [
    r"abc|ab|b*",
    r"(a|b)*abb",
    r"[a-c]{2,4}x?",
    r"^\d{3}-\d+$",
    r"[^a\n]+",
    r"(?:ab?){2}(?P<n>c)?",
    r"\w+\s\w+",
    r"a{2,}b{0,2}c{2}",
    r"[]a-]+",
    r"(a*)*b+?",
    r"\x61\u0062[\x{63}-e]é.",
    r"",
    r"()|(a|)b",
    r"[\D]a|\S\W",
    r"a\.\$\-\\",
]


@pytest.mark.parametrize("text", REGEXES)
def test_regexes_match_what_python_matches(text):
    automaton = byte_automaton(regex_pattern(text))
    python = re.compile(re.sub(r"\\x\{(\w+)\}", r"\\x\1", text))
    rng = random.Random(1)
    alphabet = "aabbcx-1 é\n.$\\]_9"
    seen = {True: 0, False: 0}
    tries = ["".join(t) for n in range(4) for t in itertools.product("abc1 -é", repeat=n)]
    tries += ["".join(rng.choices(alphabet, k=rng.randint(0, 9))) for _ in range(500)]
    for sample in tries:
        found = accepts(automaton, sample)
        expected = python.fullmatch(sample) is not None
        if sample.isascii() or not re.search(r"\\[dwsDWS]", text):
            assert found == expected, sample
        assert expected or not found, sample
        seen[found] += 1
    far = distances(automaton)
    for _ in range(30):
        sample = walk(automaton, far, rng)
        assert python.fullmatch(sample), sample
        seen[True] += 1
    assert seen[True] and seen[False]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a(b", "a ( without its )"),
        ("a)b", "a ) without its ("),
        ("(?i)a", "a group with flags"),
        ("(?=a)b", "look-around"),
        (r"a\b", r"\b"),
        (r"\p{L}", r"\p"),
        (r"(a)\1", r"\1"),
        ("a^b", "a ^ inside"),
        ("a$b", "a $ inside"),
        ("^a|b", "an anchor that belongs to one"),
        ("*a", "a * with nothing before it"),
        ("a{2,1}", "a count whose end"),
        ("a{x}", "a { that is no count"),
        ("[a", "a [ without its ]"),
        ("[[a]]", "a class inside of a class"),
        ("[b-a]", "a range that ends before"),
        (r"\x{110000}", "no code point"),
    ],
)
def test_regexes_that_are_refused(text, what):
    with pytest.raises(GuideError, match=re.escape(what)) as caught:
        regex_pattern(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["(a{900}){900}", "(()()){99999}{99999}", ".{400}"])
def test_regexes_that_are_too_large(text, monkeypatch):
    monkeypatch.setattr(module, "MAX_STATES", 300)
    monkeypatch.setattr(module, "_MAX_NODES", 20_000)
    with pytest.raises(GuideError, match="too many for a canvas"):
        byte_automaton(regex_pattern(text))


def test_nesting_has_a_limit(tokenizer):
    compiler = CanvasGuideCompiler(tokenizer.to_str())
    with pytest.raises(GuideError, match="the regex nests too deeply"):
        compiler.compile(Guide.regex("(" * 5000 + "a" + ")" * 5000), end_tokens=frozenset({END}))


# --------------------------------------------------------------------------------------------- JSON
def test_integers_between_bounds():
    rng = random.Random(0)
    for _ in range(60):
        low = rng.choice([None, rng.randint(-1100, 1100), rng.randint(-12, 12)])
        high = rng.choice([None, rng.randint(-1100, 1100), rng.randint(-12, 12)])
        automaton = byte_automaton(integers(low, high))
        for number in range(-1250, 1251, 1 if rng.random() < 0.2 else 7):
            inside = (low is None or low <= number) and (high is None or number <= high)
            assert accepts(automaton, str(number)) == inside, (low, high, number)
        assert not accepts(automaton, "-0") or low is None
        assert not accepts(automaton, "01") and not accepts(automaton, "")


SCHEMAS = [
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "tags": {"type": "array", "items": {"enum": ["red", 3, None]}, "maxItems": 4},
        },
        "required": ["name", "tags"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {name: {"type": "boolean"} for name in "abc"},
        "required": ["b"],
    },
    {"type": "object", "properties": {name: {"type": "null"} for name in "ab"}},
    {"type": "object", "additionalProperties": {"type": "integer"}},
    {"type": "object", "additionalProperties": False},
    {"type": "string", "pattern": "^[a-c]{2,5}$"},
    {"type": "string", "pattern": 'b[0-9"\\n]'},
    {"type": "string", "minLength": 3, "maxLength": 6},
    {"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 12},
    {"type": ["number", "null"]},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "items": False},
    {"type": "array", "items": {"type": "integer", "maximum": 5}, "minItems": 2, "maxItems": 3},
    {"anyOf": [{"const": {"a": [1, "x"]}}, {"type": "boolean"}]},
    {"oneOf": [{"type": "boolean"}, {"type": "string", "maxLength": 2}]},
    {"allOf": [{"type": "integer", "minimum": 3}]},
    {"enum": [1, "a", 5], "type": ["integer", "string"]},
    {
        "$defs": {"point": {"type": "array", "items": {"type": "number"}, "minItems": 2}},
        "type": "object",
        "properties": {"from": {"$ref": "#/$defs/point"}, "to": {"$ref": "#/$defs/point"}},
        "required": ["from", "to"],
    },
    {"title": "annotated", "description": "d", "type": "boolean"},
]


@pytest.mark.parametrize("index", range(len(SCHEMAS)))
def test_what_is_made_conforms(index):
    schema = SCHEMAS[index]
    checker = jsonschema.Draft202012Validator(schema)
    automaton, rng = byte_automaton(json_schema_pattern(schema)), random.Random(index)
    far = distances(automaton)
    for _ in range(40):
        text = walk(automaton, far, rng)
        checker.validate(json.loads(text))


def test_what_conforms_is_made():
    automaton = byte_automaton(json_schema_pattern(SCHEMAS[0]))
    for value in (
        {"name": "", "tags": []},
        {"name": 'ü"\\\n', "age": 0, "tags": ["red"]},
        {"name": "twelve chars", "age": 130, "tags": [3, None, "red", 3]},
    ):
        for indent in (None, 0, 2):
            assert accepts(automaton, json.dumps(value, indent=indent, ensure_ascii=False))
    for text in (
        '{"name": ""}',
        '{"name": "", "age": 131, "tags": []}',
        '{"tags": [], "name": ""}',
        '{"name": "thirteen chars", "tags": []}',
        '{"name": "", "tags": [3, 3, 3, 3, 3]}',
        '{"name": "", "tags": [],}',
        '{"name": "", "tags": [], "more": 1}',
    ):
        assert not accepts(automaton, text)


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        (True, None),
        ({}, r"values of any kind; give their type \(at #\)"),
        ({"type": "array"}, r"values of any kind; give their type \(at #/items\)"),
        ({"type": "number", "minimum": 1}, "minimum for number"),
        ({"type": "integer", "multipleOf": 2}, "multipleOf for integer"),
        ({"type": "integer", "minimum": 0.5}, "the minimum 0.5 of integers"),
        ({"type": "string", "format": "date"}, "format for string"),
        ({"type": "string", "pattern": "a", "maxLength": 3}, "pattern together with"),
        ({"minLength": 1}, "minLength without a type"),
        ({"type": "object", "required": ["a"]}, "the required property 'a' without its schema"),
        ({"enum": [1], "minimum": 0}, "enum together with minimum"),
        ({"enum": [1, True], "type": "integer"}, "enum together with type"),
        ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, "allOf of several"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf whose schemas"),
        ({"$ref": "#/$defs/x"}, "leads nowhere"),
        ({"$ref": "other"}, "no place of the same schema"),
        ({"type": "thing"}, "the type 'thing'"),
        (
            {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
            "# inside of itself, which nests without end",
        ),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "null"}},
                "additionalProperties": {"type": "null"},
            },
            "additionalProperties of a schema beside properties",
        ),
        (
            {"type": "array", "prefixItems": [{"type": "null"}], "maxItems": 1, "items": False},
            "prefixItems without",
        ),
    ],
)
def test_schemas_that_are_refused(schema, what):
    if what is None:
        schema, what = {"type": "array", "items": True}, "values of any kind"
    with pytest.raises(GuideError, match=what) as caught:
        json_schema_pattern(schema)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------- beside the other guides
SAME = [
    Guide.regex(r"(abc|b\.)+[^a]{0,3}"),
    Guide.regex(r"[a-f]{2,9}( naïve| 日)?"),
    Guide.choices(["red", "green", "red green", "naïve", "日本", '"\\|']),
    Guide.json_schema({"type": "integer", "minimum": 3, "maximum": 1234}),
]


@pytest.mark.parametrize("guide", SAME, ids=lambda guide: guide.value[:12])
def test_left_to_right_it_allows_what_the_other_guide_allows(guide, tokenizer):
    """The other one allows one way alone to spell what has to follow."""
    compiled = CanvasGuideCompiler(tokenizer.to_str()).compile(guide, end_tokens=frozenset({END}))
    other = GuideCompiler(tokenizer.to_str(), frozenset({END})).compile(guide)
    rng, length = random.Random(0), 40
    for _ in range(25):
        tokens: list[int] = []
        while len(tokens) < length - 12:
            masks = torch.zeros(2, -(-NUM_IDS // 32), dtype=torch.int32)
            compiled.fill_mask(tokens, len(tokens), length, masks[0])
            other.fill_mask(tokens, masks[1])
            found, expected = unpack_bits(masks, NUM_IDS)
            assert compiled.complete(tokens) == other.complete(tokens)
            if compiled.complete(tokens):
                break
            assert not (expected & ~found).any(), tokens
            for token in (found & ~expected).nonzero()[:, 0].tolist():
                words = torch.zeros(-(-NUM_IDS // 32), dtype=torch.int32)
                other.fill_mask([*tokens, token], words)
                assert (words != -1).any(), (tokens, token)  # else outside of the language
            token = rng.choice(found.nonzero()[:, 0].tolist())
            if token == END:
                break
            tokens.append(token)
