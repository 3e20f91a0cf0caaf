"""A trained tokenizer as our loader and as transformers open it; how documents become tokens."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.model.small_tokenizers import CHATML, CORPUS, byte_level, metadata, sentencepiece
from tokenizers import Tokenizer as Backend

from anyorder.core.errors import UserError
from anyorder.model.tokenizer import Tokenizer
from anyorder.training.documents import Document, Encoder
from anyorder.training.tokenizers import CONTROL, train_tokenizer, unpack_tokenizer

TURNS = ("<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizer")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return train_tokenizer(CORPUS, folder, size=400, further=TURNS, chat_template=CHATML)


def test_trained(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocabulary_size == 400
    assert tokenizer.mask_token == 1 and tokenizer.end_tokens == {0, 3}
    assert tokenizer.control_tokens == {0, 1, 2, 3}
    text = "A text never seen: żółw, 漢字, \x00 and <|mask|>"
    ids = tokenizer.encode(text, parse_special=False)
    assert tokenizer.decode(ids) == text and not set(ids) & tokenizer.control_tokens
    assert len(tokenizer.encode(CORPUS[0])) < len(CORPUS[0].encode()) / 2


def test_transformers_agrees(tokenizer: Tokenizer, folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs.eos_token_id in tokenizer.end_tokens and theirs.mask_token_id == 1
    for text in CORPUS:
        assert theirs(text)["input_ids"] == tokenizer.encode(text)


def test_training_again_gives_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    again = train_tokenizer(iter(CORPUS), tmp_path, size=400, further=TURNS)
    assert again.to_json() == tokenizer.to_json()


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"256 bytes and 2 control tokens need at least 258"):
        train_tokenizer(CORPUS, tmp_path, size=257)
    with pytest.raises(UserError, match=r"give only \d+ tokens, not 5000"):
        train_tokenizer(CORPUS, tmp_path, size=5000)
    with pytest.raises(UserError, match="unknown control token 'end'"):
        train_tokenizer(CORPUS, tmp_path, size=400, control={"end": "<e>"})
    assert not any(tmp_path.iterdir())


# -------------------------------------------------------------------------------------- documents
def test_prompt_is_only_given(tokenizer: Tokenizer) -> None:
    tokens, targets = Encoder.of(tokenizer).encode(Document(prompt="12 + 3 = ", text="15"))
    given = list(itertools.compress(tokens, (not target for target in targets)))
    learnt = list(itertools.compress(tokens, targets))
    assert tokenizer.decode(given) == "12 + 3 = " and tokenizer.decode(learnt[:-1]) == "15"
    assert learnt[-1] == 0 and targets == sorted(targets)


def test_texts_cannot_forge_control_tokens(tokenizer: Tokenizer) -> None:
    forged = "<|endoftext|> and <|mask|>"
    tokens, _ = Encoder.of(tokenizer).encode(Document(prompt=forged, text=forged))
    assert [token for token in tokens if token in tokenizer.control_tokens] == [0] == tokens[-1:]


def test_frame_of_the_tokenizer(tmp_path: Path) -> None:
    """Where the tokenizer itself puts tokens around a text, they are used and no other."""
    import json

    control = {"bos_token": "<s>", **CONTROL}
    train_tokenizer(CORPUS, tmp_path, size=300, control=control)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_bos_token": True}))
    encoder = Encoder.of(Tokenizer.from_folder(tmp_path))
    assert encoder.before == (0,) and encoder.after == (1,)
    tokens, targets = encoder.encode(Document(text="a"))
    assert tokens[0] == 0 and tokens[-1] == 1 and targets == [False, True, True]


def test_chat_learns_the_assistants_turns(tokenizer: Tokenizer) -> None:
    contents = ["Hi", "\nHello <|im_end|>!", "And?", "That is all."]
    messages = [
        {"role": role, "content": content}
        for role, content in zip(["user", "assistant"] * 2, contents, strict=True)
    ]
    tokens, targets = Encoder.of(tokenizer).encode(Document(messages=messages))
    assert tokens == tokenizer.apply_chat_template(messages, add_generation_prompt=False)
    runs = itertools.groupby(zip(tokens, targets, strict=True), key=lambda pair: pair[1])
    parts = [
        (target, tokenizer.decode([token for token, _ in run], skip_special=False))
        for target, run in runs
    ]
    assert [target for target, _ in parts] == [False, True, False, True]
    assert parts[1][1].lstrip("\n") == "Hello <|im_end|>!<|im_end|>\n"
    assert parts[3][1] == "That is all.<|im_end|>\n"
    assert parts[0][1].endswith("assistant\n") or parts[0][1].endswith("assistant")


def test_template_that_rewrites_the_past(tmp_path: Path) -> None:
    """Some templates drop the reasoning of earlier turns; what was learnt would be wrong."""
    template = (
        "{% for m in messages %}{% if loop.last or m.role == 'user' %}<{{ m.content }}>{% else %}"
        "<dropped>{% endif %}{% endfor %}"
    )
    tokenizer = train_tokenizer(CORPUS, tmp_path, size=300, chat_template=template)
    messages = [
        {"role": role, "content": "a long enough turn"} for role in ("user", "assistant", "user")
    ]
    with pytest.raises(UserError, match="lays out 2 messages differently when more follow"):
        Encoder.of(tokenizer).encode(Document(messages=messages))


@pytest.mark.parametrize("kind", [byte_level, sentencepiece])
def test_a_gguf_files_tokenizer_as_a_folder(kind: Callable[[], Backend], tmp_path: Path) -> None:
    described = {**metadata(kind()), "tokenizer.chat_template": CHATML}
    unpack_tokenizer(described, tmp_path)
    expected, found = Tokenizer.from_gguf(described), Tokenizer.from_folder(tmp_path)
    for text in (*CORPUS, "<|im_start|> and <s>"):
        for parse_special in (False, True):
            ids = expected.encode(text, parse_special=parse_special)
            assert found.encode(text, parse_special=parse_special) == ids
        assert found.decode(ids) == expected.decode(ids)
    assert found.end_tokens == expected.end_tokens and found.bos_token == expected.bos_token
    assert found.control_tokens == expected.control_tokens and found.chat_template == CHATML
    assert found.differs(expected) is None


# ----------------------------------------------------------------------------------- infill tokens
@pytest.mark.parametrize(
    "names",
    [
        ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
        ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
        ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ],
)
def test_infill_tokens_are_found_by_name(names: tuple[str, ...], tmp_path: Path) -> None:
    tokenizer = train_tokenizer(CORPUS, tmp_path, size=300, further=(names[2], *names[:2]))
    assert tokenizer.infill_tokens == (3, 4, 2)
    assert not {2, 3, 4} & set(tokenizer.encode("".join(names), parse_special=False))


def test_infill_tokens_may_be_ordinary_additions(tmp_path: Path) -> None:
    """Qwen lists them as added tokens that are not special."""
    import json

    names = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
    train_tokenizer(CORPUS, tmp_path, size=300, further=names)
    path = tmp_path / "tokenizer.json"
    data = json.loads(path.read_text())
    for token in data["added_tokens"]:
        token["special"] = token["content"] not in names
    path.write_text(json.dumps(data))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert not {2, 3, 4} & tokenizer.control_tokens and tokenizer.infill_tokens == (2, 3, 4)


def test_two_of_three_infill_tokens_are_none(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert tokenizer.infill_tokens is None
    further = ("<fim_prefix>", "<fim_suffix>", "<|fim_middle|>")
    assert train_tokenizer(CORPUS, tmp_path, size=300, further=further).infill_tokens is None
