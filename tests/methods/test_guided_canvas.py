"""Guides on canvases, method by method: whatever is written is valid, and drawn as it should be."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import torch
from tests.methods.enumerated import LENGTH, MASK, chi_square, enumerated_model, joint
from tests.tiny import assert_no_page_is_lost, tiny_config, tiny_encoder_decoder
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from anyorder.core.errors import GuideError, InvalidRequest
from anyorder.core.method import Abilities, TextRules
from anyorder.core.request import Guide, Request
from anyorder.engine.engine import Engine
from anyorder.model.loaded import LoadedModel
from anyorder.model.tokenizer import Tokenizer
from anyorder.model.tokenizer_source import TokenizerSource
from anyorder.model.transformer import Transformer
from anyorder.sampling import windows

END, MASK_TOKEN, VOCABULARY = 0, 320, 321


@functools.cache
def tokenizer(*, words: tuple[str, ...] = ()) -> Tokenizer:
    """A byte-level BPE of 320 ids, 0 the end token; or one of these words alone."""
    backend = Backend(models.BPE({word: i for i, word in enumerate(words)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if not words:
        text = ['{"name": "Ann", "age": 12, "tags": ["red", "green"], "ok": true}'] * 20
        backend.train_from_iterator(
            [*text, *["the red green blue abc abab 2024-01-31 false été 345 6.5e3"] * 20],
            trainers.BpeTrainer(
                vocab_size=320,
                special_tokens=["<end>"],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
    control = {} if words else {"<end>": END}
    source = TokenizerSource(
        backend=backend, vocabulary_size=len(words) or 320, control=control, added={}
    )
    return Tokenizer(source)


@functools.cache
def model(*, ends: bool = True, **changes: Any) -> LoadedModel:
    """A random network of masks and blocks over the tokenizer's ids."""
    config = tiny_config(vocabulary_size=VOCABULARY)
    abilities = Abilities(
        name="tiny",
        vocabulary_size=VOCABULARY,
        context_length=128,
        num_layers=2,
        end_tokens=frozenset({END} if ends else ()),
        mask_token=MASK_TOKEN,
        attention=frozenset({"causal", "bidirectional"}),
        **changes,
    )
    network = Transformer.random(config, seed=3)
    return LoadedModel(network=network, abilities=abilities, tokenizer=tokenizer())


Check = Callable[[str], object]
SCHEMA = {
    "type": "object",
    "properties": {
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "name": {"type": "string", "maxLength": 8},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 2},
    },
    "required": ["age", "tags"],
}
CHOICES = ["the red", "green", "abc abab abc", "été", "2024"]


def is_json(text: str) -> bool:
    jsonschema.validate(json.loads(text), SCHEMA)
    return True


GUIDES: list[tuple[Guide, Check, int]] = [
    (Guide.regex(r"\d{3,5}-[a-f]+(é|\.)?"), re.compile(r"\d{3,5}-[a-f]+(é|\.)?").fullmatch, 11),
    (Guide.choices(CHOICES), CHOICES.__contains__, 6),
    (Guide.json_schema(SCHEMA), is_json, 20),
]
POLICIES: list[dict[str, Any]] = [
    {"commit": "confidence", "steps": 4},
    {"commit": {"name": "confidence", "noise": 1.0}},
    {"commit": "ancestral", "steps": 5},
    {"commit": "random", "steps": 4},
    {"commit": "sequential", "steps": 3},
    {"commit": {"name": "threshold", "level": 0.02}},
    {"commit": "factor"},
    {"commit": "margin", "steps": 3},
    {"commit": "entropy", "steps": 2},
    {"commit": "entropy_bound"},
    {"commit": "hierarchy", "steps": 4},
    {"commit": "random", "steps": 6, "revise": {"name": "cap"}},
    {"commit": "confidence", "steps": 4, "revise": {"name": "lowest"}},
    {"commit": "confidence", "steps": 6, "revise": {"name": "edit"}},
]
METHODS: list[tuple[str, dict[str, Any]]] = [
    *(("masked_diffusion", options) for options in POLICIES),
    ("masked_diffusion", {"window": None, "steps": 1}),
    ("block_diffusion", {"block_size": 4, "steps": 2}),
    ("block_diffusion", {"block_size": 3, "commit": "random"}),
    ("block_diffusion", {"block_size": 3, "in_flight": 3, "commit": "factor"}),
    ("semi_autoregressive", {"size": 3, "ahead": 1}),
    ("mask_predict", {"iterations": 3}),
    ("mask_predict", {"iterations": 1}),
    ("gibbs", {"burn_in": 1, "sweeps": 1}),
    ("uniform_diffusion", {"steps": 4}),
    ("uniform_diffusion", {"steps": 4, "sampler": "renoise"}),
]


def texts(
    engine: Engine, method: str, options: dict[str, Any], guide: Guide | None, **fields: Any
) -> list[str]:
    request = Request(
        **{
            "prompt": [5, 6, 7],
            "method": method,
            "options": options,
            "guide": guide,
            "temperature": 1.0,
            "n": 6,
            **fields,
        }
    )
    completion = engine.generate(request)
    assert_no_page_is_lost(engine)
    assert not isinstance(completion, list)
    assert len(completion.choices) == request.n  # one that is not finished is left out
    return [choice.text for choice in completion.choices]


def options_id(value: object) -> str:
    return str(value).replace(" ", "") if isinstance(value, dict) else str(value)


@pytest.mark.parametrize(("method", "options"), METHODS, ids=options_id)
def test_everything_is_valid(method: str, options: dict[str, Any]) -> None:
    engine = Engine(model(), cache_tokens=8192)
    for guide, check, length in GUIDES:
        for temperature, count in ((0.0, 1), (1.0, 3)):
            found = texts(
                engine,
                method,
                options,
                guide,
                max_new_tokens=length,
                temperature=temperature,
                n=count,
            )
            for text in found:
                assert check(text), (guide.kind, text)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "options"), METHODS, ids=options_id)
def test_everything_is_valid_with_200_seeds(method: str, options: dict[str, Any]) -> None:
    engine = Engine(model(), cache_tokens=16384)
    for guide, check, length in GUIDES:
        for seed in range(4):
            found = texts(engine, method, options, guide, max_new_tokens=length, n=50, seed=seed)
            assert all(check(text) for text in found)


def test_without_the_guide_or_its_joint_check_nothing_is_valid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both halves are needed: what may stand alone, and what may stand together."""
    engine = Engine(model(), cache_tokens=8192)
    guide, check, length = GUIDES[0]
    options = {"commit": "random", "steps": 2}
    fields = {"max_new_tokens": length, "n": 12}
    assert all(check(text) for text in texts(engine, "masked_diffusion", options, guide, **fields))
    free = texts(engine, "masked_diffusion", options, None, **fields)
    assert not any(check(text) for text in free)
    whole = windows.compatible

    def careless(*arguments: Any, **named: Any) -> list[int]:
        return whole(*arguments, **{**named, "guide": None})

    monkeypatch.setattr("anyorder.engine.run.compatible", careless)
    try:
        apart = texts(engine, "masked_diffusion", options, guide, **fields)
    except Exception as error:
        assert "no token is left" in str(error)
    else:
        assert not all(check(text) for text in apart)


def test_fixed_tokens_stay_and_the_rest_fits_around_them() -> None:
    engine = Engine(model(), cache_tokens=8192)
    known = tokenizer().encode('"name"', add_special=False)
    canvas = [*[None] * 8, *known, *[None] * 14]
    for method, options in METHODS[::3]:
        request = Request(
            prompt=[5, 6, 7],
            method=method,
            options=options,
            guide=Guide.json_schema(SCHEMA),
            temperature=1.0,
            canvas=canvas,
        )
        completion = engine.generate(request)
        assert is_json(completion.text) and '"name"' in completion.text
        assert completion.tokens[8 : 8 + len(known)] == known


def test_without_end_tokens_a_text_ends_where_it_is_complete() -> None:
    engine = Engine(model(ends=False), cache_tokens=8192)
    for guide, check, length in GUIDES[1:]:
        for text in texts(
            engine, "masked_diffusion", {"steps": 5}, guide, max_new_tokens=length, n=6
        ):
            assert check(text)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_new_tokens": 3}, "the shortest text that the JSON Schema allows has"),
        ({"canvas": [None] * 12 + [END]}, None),
        ({"canvas": [*[None] * 12, 65, None]}, "the canvas contradicts the JSON Schema"),
        (
            {"guide": Guide.choices(["abc", "été"]), "max_new_tokens": 30, "min_new_tokens": 20},
            "the list of choices allows no text of 20 to 30 tokens",
        ),
        ({"guide": Guide.lark('start: "a"')}, "cannot guide a canvas"),
        ({"method": "planned_diffusion"}, "planned_diffusion needs"),
    ],
)
def test_what_cannot_be_is_refused_before_it_runs(
    fields: dict[str, Any], words: str | None
) -> None:
    engine = Engine(model(), cache_tokens=8192)
    known: dict[str, Any] = {"method": "masked_diffusion", "guide": Guide.json_schema(SCHEMA)}
    request = Request(prompt=[5], **{**known, **fields})
    if words is None:
        assert is_json(engine.generate(request).text)
        return
    with pytest.raises((GuideError, InvalidRequest, ValueError), match=words) as caught:
        engine.submit(request)
    assert "\n" not in str(caught.value)


def test_texts_with_beginnings_of_their_own_are_refused() -> None:
    changes = {"text_rules": TextRules(first_token=1, start_tokens=(1,))}
    engine = Engine(model(**changes), cache_tokens=1024)
    with pytest.raises(InvalidRequest, match="begin or end with tokens of its own"):
        engine.submit(
            Request(prompt=[5], method="masked_diffusion", guide=GUIDES[0][0], max_new_tokens=9)
        )


def test_a_token_that_completes_one_text_does_not_end_another() -> None:
    engine = Engine(model(), cache_tokens=8192)
    guide, seen = Guide.regex("x|yx[ab]"), set[str]()
    for options in POLICIES[:6]:
        bias = {tokenizer().encode("y", add_special=False)[0]: 2.0}
        found = texts(
            engine, "masked_diffusion", options, guide, max_new_tokens=4, logit_bias=bias, n=8
        )
        seen |= set(found)
    assert seen == {"x", "yxa", "yxb"}


def test_alone_as_in_company() -> None:
    """Guided requests of several methods in the same passes each write what they write alone."""
    requests = [
        Request(
            prompt=[5, 6, 7 + number],
            method=method,
            options=options,
            guide=guide,
            temperature=1.0,
            max_new_tokens=length,
            n=2,
            seed=number,
        )
        for number, ((method, options), (guide, _, length)) in enumerate(
            zip(METHODS[::2], itertools.cycle([*GUIDES, (None, None, 9)]), strict=False)
        )
    ]
    engine = Engine(model(), cache_tokens=8192)
    together = engine.generate(requests)
    for request, found in zip(requests, together, strict=True):
        alone = Engine(model(), cache_tokens=8192).generate(request)
        assert [c.tokens for c in found.choices] == [c.tokens for c in alone.choices]
        assert len(found.choices) == 2


def test_networks_that_tell_a_place_by_the_token_before_it() -> None:
    """What a clean block tells of the next one's first place may not fit what was placed since."""
    engine = Engine(model(token_shift=True), cache_tokens=8192)
    for method, options in (
        ("block_diffusion", {"block_size": 4, "commit": "random"}),
        ("block_diffusion", {"block_size": 3, "commit": "confidence", "steps": 2}),
        ("block_diffusion", {"block_size": 4, "first": "clean", "commit": "random"}),
        ("masked_diffusion", {"commit": "random"}),
    ):
        for guide, check, length in GUIDES:
            for text in texts(engine, method, options, guide, max_new_tokens=length, n=6):
                assert check(text), (method, text)


def test_single_tokens_that_are_banned_are_planned_for() -> None:
    """A ban that a guide knows of leads into no dead end."""
    engine = Engine(model(), cache_tokens=8192)
    guide = Guide.regex("(a|b)(c|d)")
    never = {token: float("-inf") for token in tokenizer().encode("ac", add_special=False)}
    letters = {text: tokenizer().encode(text, add_special=False)[0] for text in "abcd"}
    never |= {letters["a"]: float("-inf"), letters["c"]: float("-inf")}
    for text in texts(
        engine, "masked_diffusion", {"steps": 1}, guide, max_new_tokens=2, logit_bias=never
    ):
        assert text == "bd"
    with pytest.raises(GuideError, match="matches no text of this model's tokens"):
        more = {**never, letters["b"]: float("-inf")}
        bias = {**more, **{t: float("-inf") for t in range(1, 320) if t != letters["d"]}}
        texts(engine, "masked_diffusion", {}, guide, max_new_tokens=2, logit_bias=bias)


# ----------------------------------------------------------------------------------- distributions
WORDS = tuple("abcde")
REGEX = "(a|b){2}(a|c)|bca|cc(a|b)|(a|c)bb"
TEXT_OF = dict(enumerate("abc"))


def allowed_texts() -> list[tuple[int, ...]]:
    return [
        text
        for text in itertools.product(range(3), repeat=LENGTH)
        if re.fullmatch(REGEX, "".join(TEXT_OF[token] for token in text))
    ]


def guided_in_order(law: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """The law of texts drawn place by place in an order: each from the network's distribution given
    those before, over the tokens that some allowed text has there."""
    valid, expected = allowed_texts(), torch.zeros_like(law)
    for text in valid:
        probability, known = 1.0, dict[int, int]()
        for place in order:
            index = tuple(known.get(at, slice(None)) for at in range(LENGTH))
            given = law[index]
            axis = place - sum(at < place for at in known)
            others = [at for at in range(given.ndim) if at != axis]
            marginal = given.sum(others) if others else given
            fits = [t for t in valid if all(t[at] == token for at, token in known.items())]
            tokens = sorted({t[place] for t in fits})
            probability *= float(marginal[text[place]] / marginal[tokens].sum())
            known[place] = text[place]
        expected[text] = probability
    return expected


def conditionals(law: torch.Tensor) -> Any:
    def predict(canvas: tuple[int, ...], number: int) -> torch.Tensor:
        rows = []
        for place in range(LENGTH):
            index = tuple(
                slice(None) if token == MASK or at == place else token
                for at, token in enumerate(canvas)
            )
            given = law[index]
            axis = sum(isinstance(part, slice) for part in index[:place])
            others = [at for at in range(given.ndim) if at != axis]
            rows.append((given.sum(others) if others else given).log())
        return torch.stack(rows).float()

    return predict


def draw(commit: str, num_texts: int, law: torch.Tensor) -> list[tuple[int, ...]]:
    loaded = enumerated_model(conditionals(law))
    loaded = LoadedModel(
        network=loaded.network, abilities=loaded.abilities, tokenizer=tokenizer(words=WORDS)
    )
    engine = Engine(loaded, cache_tokens=16384)
    found: list[tuple[int, ...]] = []
    for seed in range(num_texts // 500):
        completion = engine.generate(
            Request(
                prompt=[3],
                method="masked_diffusion",
                options={"commit": commit},
                guide=Guide.regex(REGEX),
                temperature=1.0,
                max_new_tokens=LENGTH,
                n=500,
                seed=seed,
            )
        )
        found += [tuple(choice.tokens) for choice in completion.choices]
    return found


def test_one_place_a_step_draws_the_guided_law_of_its_order() -> None:
    law = joint(4)
    expected = guided_in_order(law, (0, 1, 2))
    assert float(expected.sum()) == pytest.approx(1)
    found = draw("sequential", 1500, law)
    assert set(found) <= set(allowed_texts())
    assert chi_square(found, expected) < 4
    # The test can tell: another order and the law itself, cut to what is allowed, are others.
    assert chi_square(found, guided_in_order(law, (2, 1, 0))) > 6
    cut = torch.zeros_like(law)
    for text in allowed_texts():
        cut[text] = law[text]
    assert chi_square(found, cut / cut.sum()) > 6


def test_in_a_random_order_it_is_the_mean_over_orders() -> None:
    law = joint(4)
    orders = list(itertools.permutations(range(LENGTH)))
    expected = torch.stack([guided_in_order(law, order) for order in orders]).mean(0)
    assert chi_square(draw("random", 1000, law), expected) < 4


def test_lengths_that_a_guide_cannot_have_are_not_tried() -> None:
    loaded = tiny_encoder_decoder(vocabulary_size=VOCABULARY, length_classes=12)
    kinds = frozenset({"causal", "bidirectional"})
    abilities = dataclasses.replace(
        loaded.abilities, mask_token=MASK_TOKEN, attention=kinds, end_tokens=frozenset({END})
    )
    engine = Engine(
        dataclasses.replace(loaded, abilities=abilities, tokenizer=tokenizer()), cache_tokens=2048
    )
    for seed in range(4):
        found = texts(
            engine,
            "mask_predict",
            {"iterations": 3, "lengths": 3},
            Guide.regex("[xyz]{7,9}"),
            max_new_tokens=11,
            n=2,
            seed=seed,
        )
        assert all(re.fullmatch("[xyz]{7,9}", text) for text in found)
