"""Tokenizers from GGUF metadata: pre-tokenizers, damaged vocabularies, the default model."""

from __future__ import annotations

import itertools

import pytest
from tests.model import small_tokenizers
from tokenizers import Regex, pre_tokenizers

from anyorder.core.errors import CheckpointError
from anyorder.model.gguf import GGUFFile
from anyorder.model.gguf_pretokenizers import PRE_TOKENIZERS
from anyorder.model.tokenizer import Tokenizer


def cut(name: str, text: str) -> list[str]:
    splits = [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        for pattern in PRE_TOKENIZERS[name].patterns
    ]
    return [piece for piece, _ in pre_tokenizers.Sequence(splits).pre_tokenize_str(text)]


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_pattern_compiles_and_loses_nothing(name):
    for text in small_tokenizers.CORPUS[:5]:
        assert "".join(cut(name, text)) == text


TEXT = "I'll pay 12345 EURos!!\n\n  don't  "
CUTS = {  # words by the definition of the pattern, a bar between them
    "gpt-2": "I|'ll| pay| 12345| EURos|!!|\n\n | don|'t|  ",
    "smollm": "I|'ll| pay| |1|2|3|4|5| EURos|!!|\n\n | don|'t|  ",
    "llama-bpe": "I|'ll| pay| |123|45| EURos|!!\n\n| | don|'t|  ",
    "qwen2": "I|'ll| pay| |1|2|3|4|5| EURos|!!\n\n| | don|'t|  ",
    "deepseek-v3": "I|'ll| pay| |123|45| EURos|!!\n\n| | don|'t|  ",
    "deepseek-coder": "I|'|ll| pay| |1|2|3|4|5| EURos|!!|\n|\n| | don|'|t|  ",
    "deepseek-llm": "I|'|ll| pay| |12345| EURos|!!|\n|\n| | don|'|t|  ",
    "gpt-4o": "I'll| pay| |123|45| EURos|!!\n\n| | don't|  ",
    "tekken": "I|'ll| pay| |1|2|3|4|5| EURos|!!\n\n| | don|'t|  ",
    "falcon": "I|'|ll| pay| |123|45| EURos|!!|\n\n | don|'|t|  ",
    "bloom": "I'll| pay| 12345| EURos|!!\n\n | don't|  ",
}


@pytest.mark.parametrize("name", CUTS)
def test_words_by_definition_of_the_patterns(name):
    assert cut(name, TEXT) == CUTS[name].split("|")


def test_byte_level_pattern_is_the_librarys_own():
    """GPT-2's pattern is built into the library; ours must cut the same."""
    theirs = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in [*small_tokenizers.CORPUS[:5], TEXT]:
        spans = [span for _, span in theirs.pre_tokenize_str(text)]
        assert cut("gpt-2", text) == [text[start:end] for start, end in spans]


def test_ignored_merges():
    """A whole word that is a token is not merged from its bytes, in the families that say so."""
    data = small_tokenizers.metadata(small_tokenizers.byte_level())
    whole = {
        **data,
        "tokenizer.ggml.tokens": [*data["tokenizer.ggml.tokens"], "zqzqz"],
        "tokenizer.ggml.token_type": [*data["tokenizer.ggml.token_type"], 1],
        "tokenizer.ggml.add_bos_token": False,
    }
    merged = Tokenizer.from_gguf({**whole, "tokenizer.ggml.pre": "qwen2"})
    assert len(merged.encode("zqzqz")) == 5
    whole["tokenizer.ggml.pre"] = "llama-bpe"
    assert Tokenizer.from_gguf(whole).encode("zqzqz") == [merged.vocabulary_size - 1]


def test_user_defined_tokens_are_found_in_plain_text():
    data = small_tokenizers.metadata(small_tokenizers.byte_level())
    data["tokenizer.ggml.tokens"] = [*data["tokenizer.ggml.tokens"], "<think>"]
    data["tokenizer.ggml.token_type"] = [*data["tokenizer.ggml.token_type"], 4]
    tokenizer = Tokenizer.from_gguf(data)
    for parse in (True, False):
        ids = tokenizer.encode("a<think>b", parse_special=parse)
        assert ids[1] == tokenizer.vocabulary_size - 1
        assert tokenizer.decode(ids) == "a<think>b"


HOSTILE = {
    "no vocabulary": ({"tokens": []}, "has no tokenizer"),
    "kind": ({"model": "rwkv"}, "kind 'rwkv'; known kinds: gpt2, llama"),
    "pre-tokenizer": (
        {"pre": "nonsense"},
        "unknown pre-tokenizer 'nonsense'; known: a.x-4.0, bail",
    ),
    "same token twice": ({"tokens": ["a", "a"]}, "same token twice"),
    "too few types": (
        {"token_type": [1]},
        "tokens, but 1 entries in tokenizer.ggml.token_type",
    ),
    "types of text": ({"token_type": ["x"] * 600}, "not a list of int"),
    "tokens of numbers": ({"tokens": [1, 2]}, "not a list of str"),
    "merge without space": ({"merges": ["ab"]}, "merges are unusable"),
    "merge of strangers": ({"merges": ["zzzz qqqq"]}, "merges are unusable"),
    "flag is text": ({"add_bos_token": "yes"}, "add_bos_token is 'yes', not a bool"),
    "no scores": ({"model": "llama"}, "without tokenizer.ggml.scores"),
    "too few scores": ({"model": "llama", "scores": [0.5]}, "1 entries in tokenizer.ggml.scores"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_damaged_metadata(case):
    changes, message = HOSTILE[case]
    data = small_tokenizers.metadata(small_tokenizers.byte_level(), **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        Tokenizer.from_gguf(data)
    assert "\n" not in str(caught.value)


def test_ids_out_of_range_are_no_ids():
    data = small_tokenizers.metadata(
        small_tokenizers.byte_level(), bos_token_id=10_000, eos_token_id=-1, add_bos_token=True
    )
    tokenizer = Tokenizer.from_gguf(data)
    assert tokenizer.bos_token is None
    assert tokenizer.encode("a") == tokenizer.encode("a", add_special=False)


# ----------------------------------------------------------------------------- the default model
@pytest.fixture(scope="module")
def default_file():
    from anyorder.model import catalog

    with GGUFFile(catalog.resolve("smollm2-135m-instruct").path) as file:
        yield file


@pytest.fixture(scope="module")
def default(default_file):
    return Tokenizer.from_gguf(default_file.metadata)


@pytest.fixture(scope="module")
def theirs(default_file):
    from transformers import AutoTokenizer

    path = default_file.path
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.mark.weights
@pytest.mark.parametrize(
    "text",
    [
        "The capital of France is",
        "It's the user's; they'll — naïve café, Straße.",
        "def f(x):\n    return x\n\n\tpass\n",
        "Привет, мир! 数字です。 مرحبا 🙂🙃👩‍👩‍👧",
        "<|im_start|>user\nHello<|im_end|>\n",
        "  two  spaces   \n \n",
    ],
)
def test_default_model_encodes_like_transformers(text, default, theirs):
    ids = default.encode(text)
    assert ids == theirs(text)["input_ids"]
    assert default.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.weights
def test_default_model_takes_digits_one_by_one(default):
    """By definition of its pre-tokenizer, which the conversion of transformers drops."""
    for text in ("1234567890", "42", "٣٤"):
        each = [default.encode(digit) for digit in text]
        assert default.encode(text) == list(itertools.chain.from_iterable(each))


@pytest.mark.weights
def test_default_model_chat_equals_transformers(default, theirs):
    chats = [
        [{"role": "user", "content": "Hello, who are you?"}],
        [
            {"role": "system", "content": "Be brief.\n"},
            {"role": "user", "content": "\n\n  Hi "},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": "Bye\n"},
        ],
    ]
    for chat in chats:
        for prompt in (True, False):
            expected = theirs.apply_chat_template(
                chat, add_generation_prompt=prompt, return_dict=False
            )
            assert default.apply_chat_template(chat, add_generation_prompt=prompt) == expected


@pytest.mark.weights
def test_default_model_facts(default):
    assert default.vocabulary_size == 49152
    assert default.end_tokens == {0, 2}
    assert default.bos_token == 1
    assert default.mask_token is None
