"""Guides: everything sampled under one is valid, every mask is right, nothing is ignored."""

from __future__ import annotations

import itertools
import json
import re
import threading

import jsonschema
import numpy as np
import pytest
import regex
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from anyorder.core.errors import GuideError
from anyorder.core.request import Guide
from anyorder.sampling import guide as module
from anyorder.sampling.guide import GuideCompiler, GuideState
from anyorder.sampling.processors import unpack_bits
from anyorder.sampling.sampler import sample

NUM_LOGITS = 352
"""Padded beyond the tokenizer's ids, as checkpoints' embeddings often are."""
NUM_IDS = 320
END = 0


@pytest.fixture(scope="module")
def compiler(tokenizer):
    return GuideCompiler(tokenizer.to_str(), frozenset({END}))


def allowed(state: GuideState, generated, num_logits=NUM_LOGITS) -> set[int]:
    words = torch.full((-(-num_logits // 32),), -7, dtype=torch.int32)
    state.fill_mask(generated, words)
    return set(unpack_bits(words[None], num_logits)[0].nonzero()[:, 0].tolist())


def generate(compiler, guide, make_row, tokenizer, seed, max_length=3000) -> str:
    """Sample from random logits at temperature 1.5, with a liking for what ends things."""
    generator = torch.Generator().manual_seed(seed)
    state, tokens = compiler.compile(guide), []
    likes = torch.zeros(NUM_LOGITS)
    for token in range(NUM_IDS):
        if tokenizer.decode([token])[-1:] in ('"', "}", "]"):
            likes[token] = 3.0
    likes[END] = 3.0
    while not state.complete(tokens):
        logits = torch.randn(1, NUM_LOGITS, generator=generator) + likes
        row = make_row(
            history=tokens, draw=(0, len(tokens)), guide=state, temperature=1.5, seed=seed
        )
        result = sample(logits, [row])[0]
        assert result.error is None
        if result.token == END:
            break
        tokens.append(result.token)
        assert len(tokens) < max_length
    return tokenizer.decode(tokens, skip_special_tokens=False)


SCHEMAS = [
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "tags": {"type": "array", "items": {"enum": ["red", "green", 3, None]}, "maxItems": 4},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    },
    {"type": "string", "pattern": "^[a-c]{2,5}$"},
    {"type": "string", "pattern": "b[0-9]", "maxLength": 5},
    {"type": "string", "minLength": 3, "maxLength": 6},
    {"type": "number", "exclusiveMinimum": -2, "maximum": 7.5},
    {"type": "integer", "multipleOf": 7, "minimum": 10, "maximum": 10_000},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "items": False},
    {"type": "array", "items": {"type": "integer", "maximum": 5}, "minItems": 2, "maxItems": 3},
    {"anyOf": [{"const": {"a": [1, "x"]}}, {"type": "boolean"}]},
    {"oneOf": [{"type": "boolean"}, {"type": "string", "maxLength": 2}]},
    {"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 12}]},
    {"enum": [1, "a", 5, None], "minimum": 3},
    {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]}},
                "required": ["next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/tree",
    },
    {
        "type": "object",
        "patternProperties": {"^x[0-9]$": {"type": "boolean"}},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 3,
    },
    {
        "type": "object",
        "properties": {"a": {"type": "null"}},
        "required": ["a"],
        "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9},
        "minProperties": 2,
        "maxProperties": 3,
    },
    {"type": "string", "format": "date"},
    {"type": "string", "format": "ipv4"},
    {"type": "string", "format": "uuid"},
    {"title": "annotated", "description": "d", "default": 1, "examples": [1], "type": "boolean"},
]


@pytest.mark.parametrize("index", range(len(SCHEMAS)))
def test_json_schema(index, compiler, make_row, tokenizer):
    schema = SCHEMAS[index]
    checker = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    texts = [
        generate(compiler, Guide.json_schema(schema), make_row, tokenizer, seed)
        for seed in range(6)
    ]
    for text in texts:
        checker.validate(json.loads(text))


def test_whitespace_is_bounded(compiler, tokenizer):
    state = compiler.compile(Guide.json_schema({"type": "array", "items": {"type": "null"}}))
    spaces = {
        token for token in range(2, NUM_IDS) if not tokenizer.decode([token]).strip(" \t\n\r")
    }
    tokens = tokenizer.encode("[").ids
    blank = tokenizer.encode("\n").ids[-1]
    assert blank in allowed(state, tokens) & spaces
    assert blank in allowed(state, [*tokens, *[blank] * 39])
    assert not allowed(state, [*tokens, *[blank] * 40]) & spaces
    start = allowed(state, [])
    assert not start & spaces and set(tokens) <= start


REGEXES = [
    "[a-c]{3}",
    "(ab|a[0-9]{1,2}c)*d?",
    "red|green|greenish",
    "(?:20[0-9]{2})-(0[1-9]|1[0-2])",
    "[^a-zA-Z ]{2,4}",
    'a+b*c?["/\\\\]',
]


@pytest.mark.parametrize("pattern", REGEXES)
def test_regex_masks(pattern, compiler, make_row, tokenizer):
    """A token is allowed exactly where a second matcher says that the text would be the beginning
    of a match; the end exactly where it is one."""
    texts = {
        token: tokenizer.decode([token], skip_special_tokens=False) for token in range(2, NUM_IDS)
    }
    texts = {token: text for token, text in texts.items() if "\ufffd" not in text}
    state = compiler.compile(Guide.regex(pattern))
    generator = np.random.default_rng(0)
    for _ in range(3):
        tokens: list[int] = []
        while len(tokens) < 8:
            text = tokenizer.decode(tokens)
            expected = {
                token
                for token, more in texts.items()
                if regex.fullmatch(pattern, text + more, partial=True)
            }
            mask = allowed(state, tokens)
            given = {token for token in mask if token in texts}
            # Where only one text can follow, only the tokenizer's own way of writing it is allowed.
            follow = [texts[token] for token in expected]
            forced = all(max(follow, key=len).startswith(more) for more in follow)
            assert given == expected or (forced and given < expected and given)
            assert (END in mask) == bool(re.fullmatch(pattern, text))
            assert not mask & {1, *range(NUM_IDS, NUM_LOGITS)}
            if state.complete(tokens):
                assert not expected and END in mask
            if not expected:
                break
            tokens.append(int(generator.choice(sorted(expected))))
    for seed in range(10):
        text = generate(compiler, Guide.regex(pattern), make_row, tokenizer, seed)
        assert re.fullmatch(pattern, text)


def test_regex_beyond_ascii(compiler, make_row, tokenizer):
    for seed in range(5):
        text = generate(compiler, Guide.regex("[é日本\u00a0]{3}"), make_row, tokenizer, seed)
        assert re.fullmatch("[é日本\u00a0]{3}", text)


def test_lark(compiler, make_row, tokenizer):
    """Balanced brackets around digits, which no regex can describe."""
    grammar = 'start: "(" start ")" | DIGIT\nDIGIT: /[0-9]/'
    for seed in range(10):
        text = generate(compiler, Guide.lark(grammar), make_row, tokenizer, seed)
        depth = text.count("(")
        assert re.fullmatch(r"\(*[0-9]\)*", text) and text.count(")") == depth


def test_choices(compiler, make_row, tokenizer):
    options = ["red", "green", "greenish", 'quote" \\ /|.*', "a\nb", "日本 été", "(red)"]
    guide = Guide.choices(options)
    texts = {generate(compiler, guide, make_row, tokenizer, seed) for seed in range(200)}
    assert texts <= set(options)
    assert len(texts) == len(options)


def test_going_back_and_branching(compiler, tokenizer):
    """Any order of questions gets the answers of a fresh start; beams do not start over."""
    guide = Guide.json_schema(SCHEMAS[0])
    state, generator = compiler.compile(guide), np.random.default_rng(1)
    texts: list[list[int]] = [[]]
    for _ in range(300):
        tokens = texts[generator.integers(len(texts))]
        tokens = (
            tokens[: generator.integers(len(tokens) + 1)] if generator.random() < 0.3 else tokens
        )
        mask = allowed(state, tokens)
        fresh = compiler.compile(guide)
        assert mask == allowed(fresh, tokens)
        assert state.complete(tokens) == fresh.complete(tokens)
        extensions = sorted(mask - {END})
        if extensions:
            texts.append([*tokens, int(generator.choice(extensions))])
    assert len(state._branches) == module._MATCHERS


def test_left_to_right_takes_one_step_per_token(compiler, tokenizer, monkeypatch):
    state = compiler.compile(Guide.regex("[a-z ]+"))
    tokens = tokenizer.encode("the red green blue abc abab " * 4).ids
    allowed(state, [])
    branch = state._branches[0]
    for length in range(len(tokens)):
        allowed(state, tokens[:length])
        state.complete(tokens[:length])
        assert state._branches == [branch]
        assert branch.tokens == tokens[:length]
    allowed(state, [*tokens[:5], *tokens[:2]])
    assert len(state._branches) == 2
    assert state._branches[1].tokens == [*tokens[:5], *tokens[:2]]
    assert branch.tokens == tokens[: len(tokens) - 1]


def test_states_are_apart(compiler, tokenizer):
    one, other = (compiler.compile(Guide.choices(["red", "green"])) for _ in range(2))
    start = allowed(one, [])
    allowed(one, tokenizer.encode("red").ids)
    assert allowed(other, []) == start


def test_a_text_outside_constrains_nothing(compiler, tokenizer):
    """Rejected drafts ask; they must neither fail the request nor spoil the state."""
    state = compiler.compile(Guide.choices(["red", "green"]))
    start = allowed(state, [])
    outside = tokenizer.encode("blue").ids
    assert allowed(state, outside) == set(range(NUM_LOGITS))
    assert not state.complete(outside)
    assert allowed(state, []) == start
    assert state.complete(tokenizer.encode("red").ids)
    assert not state.complete([])


def test_without_end_tokens(tokenizer):
    """The text ends where the guide is complete; nothing else can end it."""
    compiler = GuideCompiler(tokenizer.to_str(), frozenset())
    state = compiler.compile(Guide.choices(["red", "redder"]))
    tokens = tokenizer.encode("red").ids
    assert 0 not in allowed(state, tokens)
    assert allowed(state, tokens)
    tokens = tokenizer.encode("redder").ids
    assert state.complete(tokens)
    assert allowed(state, tokens) == set()


def test_fewer_logits_than_ids(tokenizer):
    """A tokenizer may know ids that the model has no logits for."""
    compiler = GuideCompiler(tokenizer.to_str(), frozenset({END}))
    mask = allowed(compiler.compile(Guide.regex("[a-z]+")), [], 300)
    assert mask and max(mask) < 300


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "object", "propertys": {}}, "keyword 'propertys' at # is not supported"),
        ({"properties": {"not": {"not": {}}}}, "keyword 'not' at #/properties/not is not"),
        ({"type": "array", "uniqueItems": True}, "keyword 'uniqueItems' at #"),
        ({"items": {"anyOf": [{}, {"nullable": True}]}}, "'nullable' at #/items/anyOf/1"),
        ({"$defs": {"a": {"if": {}}}}, "keyword 'if' at #/[$]defs/a"),
        ({"additionalProperties": {"contains": {}}}, "'contains' at #/additionalProperties"),
        ({"x-guidance": {"lenient": True}}, "keyword 'x-guidance'"),
        ({"items": [{}]}, "#/items of the JSON Schema must be an object or a boolean"),
        ({"anyOf": {}}, "#/anyOf of the JSON Schema must be a list of schemas"),
        ({"properties": []}, "#/properties of the JSON Schema must map names"),
        ({"required": ["a"], "minProperties": 3}, "minProperties at # is 3; at most one more"),
        ({"type": "strng"}, "Invalid type: strng"),
        ({"type": "string", "format": "zzz"}, "Unknown format: zzz"),
        ({"type": "string", "pattern": "(?=a)"}, "look-around.* not supported"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"type": "number", "minimum": 3, "maximum": 1}, "minimum .3. is greater than maximum"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf constraints"),
        ({"$ref": "#/$defs/nowhere"}, "does not exist"),
        ({"$ref": "http://example.com/schema"}, "JSON Schema cannot be used"),
        ({"enum": []}, "anyOf is empty"),
        ({"minLength": "a", "type": "string"}, "minLength"),
    ],
)
def test_refused_schemas(schema, message, compiler):
    with pytest.raises(GuideError, match=message) as caught:
        compiler.compile(Guide.json_schema(schema))
    assert "\n" not in str(caught.value)


MANY = {str(name): {"type": "null"} for name in range(1001)}


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (Guide.regex("(?=a)b"), "the regex cannot be used: look-around"),
        (Guide.regex("a("), "the regex cannot be used: unclosed group"),
        (Guide.regex(r"(a)\1"), "backreferences are not supported"),
        (Guide.regex(r"[^\s\S]"), "matches no text"),
        (Guide.regex(""), "matches no text but the empty one"),
        (Guide.lark("start: foo"), 'the grammar cannot be used: .*unknown name: "foo"'),
        (Guide.lark("start: start"), "the grammar matches no text or is too complex"),
        (Guide.json_schema({"properties": MANY}), "#/properties .* 1001 entries; at most 1000"),
        (Guide.lark('start: %json {"maximun": 3}'), "keyword 'maximun' at %json"),
        (Guide.lark('start: %json {"maximum": }'), "after %json is not valid JSON"),
        (Guide.lark("start: a\na[temperature=0.5]: /x/"), "temperature is not supported"),
        (Guide.regex("a" * (module.MAX_LENGTH + 1)), "has 262145 characters; at most 262144"),
        (Guide.choices(["a"] * 10_001), "there are 10001 choices; at most 10000"),
    ],
)
def test_refused_guides(guide, message, compiler):
    with pytest.raises(GuideError, match=message) as caught:
        compiler.compile(guide)
    assert "\n" not in str(caught.value)


def test_many_long_choices(compiler, tokenizer):
    options = [f"number {number}" for number in range(10_000)]
    state = compiler.compile(Guide.choices(options))
    assert state.complete(tokenizer.encode("number 9999").ids)
    assert not state.complete(tokenizer.encode("number 999").ids)


@pytest.mark.parametrize(
    ("guide", "text"),
    [
        (Guide.regex(r"(\w{0,300} ?){300}\p{L}{200}"), "the quick brown " * 20),
        (Guide.lark('start: s\ns: s s s | s s | "a"'), "a" * 120),
    ],
)
def test_limits_are_errors(guide, text, compiler, tokenizer):
    """An automaton that explodes runs into the limits; other texts do not suffer."""
    state, tokens = compiler.compile(guide), tokenizer.encode(text).ids
    other = compiler.compile(guide)
    with pytest.raises(GuideError, match=r"too complex to follow: .*; simplify it") as caught:
        for length in range(0, len(tokens), 5):
            allowed(state, tokens[:length])
    assert "\n" not in str(caught.value)
    assert allowed(state, []) == allowed(other, []) == allowed(compiler.compile(guide), [])


def test_a_slow_guide_is_an_error(compiler, tokenizer, monkeypatch):
    """By a clock on which every question takes a tenth of a second."""
    clock = itertools.count()
    monkeypatch.setattr(module.time, "thread_time", lambda: next(clock) * 0.1)
    monkeypatch.setattr(module, "_SECONDS_A_QUESTION", 0.05)
    state, tokens = compiler.compile(Guide.regex("[ab]*")), tokenizer.encode("ab" * 30).ids
    for length in range(40):  # 2 seconds, and half of what each has taken
        assert allowed(state, tokens[:length])
    with pytest.raises(GuideError, match=r"too slow to follow: \d+ steps took 4.\d seconds"):
        for length in range(40, 45):
            allowed(state, tokens[:length])


def test_a_slow_grammar_keeps_no_other_waiting(tokenizer, monkeypatch):
    compiler = GuideCompiler(tokenizer.to_str(), frozenset({END}))
    compile, begun, go = compiler._compile, threading.Event(), threading.Event()

    def slow(guide: Guide):
        if guide.value == "a+":
            begun.set()
            assert go.wait(30)
        return compile(guide)

    monkeypatch.setattr(compiler, "_compile", slow)
    thread = threading.Thread(target=compiler.compile, args=[Guide.regex("a+")])
    thread.start()
    try:
        assert begun.wait(30)
        assert compiler.compile(Guide.regex("b+")).complete([]) is False
        assert not go.is_set() and thread.is_alive()
    finally:
        go.set()
        thread.join()


def test_compiled_guides_are_kept(tokenizer, monkeypatch):
    monkeypatch.setattr(module, "_CACHED_GRAMMARS", 2)
    compiler = GuideCompiler(tokenizer.to_str(), frozenset({END}))
    for text in "abac":
        compiler.compile(Guide.choices([text]))
    kept = [guide.value for guide in compiler._matchers]
    assert kept == ['["a"]', '["c"]']


def test_a_tokenizer_of_an_unusable_kind():
    tokenizer = Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    compiler = GuideCompiler(tokenizer.to_str(), frozenset({0}))
    with pytest.raises(GuideError, match=r"this model's tokenizer cannot be guided: .*; generate"):
        compiler.compile(Guide.regex("a"))
