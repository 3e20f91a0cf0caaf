"""Encoding, decoding and streaming, against the `tokenizers` and `transformers` libraries."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.model import small_tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from anyorder.core.errors import CheckpointError, InvalidRequest
from anyorder.model.tokenizer import Tokenizer

TEXTS = [*small_tokenizers.CORPUS[:5], "", " ", "  two", "\n\n", "a\tb", "<|im_start|>hi<|im_end|>"]
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@pytest.fixture(scope="module")
def backend():
    return small_tokenizers.byte_level()


@pytest.fixture(scope="module")
def byte_level(backend):
    return Tokenizer.from_gguf(small_tokenizers.metadata(backend))


@pytest.fixture(scope="module")
def sentencepiece():
    return Tokenizer.from_gguf(small_tokenizers.metadata(small_tokenizers.sentencepiece()))


@pytest.fixture(scope="module")
def gemma_like():
    """SentencePiece without a space before texts."""
    return Tokenizer.from_gguf(
        small_tokenizers.metadata(
            small_tokenizers.sentencepiece(prefix=False), add_space_prefix=False
        )
    )


# ------------------------------------------------------------------------------------- encoding
@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_encodes_like_the_library(text, byte_level, backend):
    assert byte_level.encode(text) == backend.encode(text).ids


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_sentencepiece_merges_follow_from_scores(text, prefix):
    backend = small_tokenizers.sentencepiece(prefix=prefix)
    ours = Tokenizer.from_gguf(small_tokenizers.metadata(backend, add_space_prefix=prefix))
    assert ours.encode(text, add_special=False) == backend.encode(text).ids


@settings(max_examples=100, deadline=None)
@given(text=texts)
def test_round_trip(text, byte_level, sentencepiece, gemma_like):
    """Any text comes back, control tokens' texts included."""
    for tokenizer in (byte_level, sentencepiece, gemma_like):
        ids = tokenizer.encode(text, parse_special=False)
        if "▁" not in text:  # SentencePiece writes spaces that way
            assert tokenizer.decode(ids) == text


def test_bos_and_eos_where_the_model_wants_them():
    data = small_tokenizers.metadata(small_tokenizers.byte_level())
    plain = Tokenizer.from_gguf(data)
    ids = plain.encode("hi")
    for flags, expected in [
        ({"add_bos_token": True}, [1, *ids]),
        ({"add_eos_token": True}, [*ids, 2]),
        ({"add_bos_token": True, "add_eos_token": True}, [1, *ids, 2]),
        ({"pre": "llama-bpe"}, [1, *ids]),
        ({"pre": "llama-bpe", "add_bos_token": False}, ids),
    ]:
        more = {f"tokenizer.ggml.{name}": value for name, value in flags.items()}
        tokenizer = Tokenizer.from_gguf({**data, **more})
        assert tokenizer.encode("hi") == expected, flags
        assert tokenizer.encode("hi", parse_special=False) == expected, flags
        assert tokenizer.encode("hi", add_special=False) == ids, flags


def test_half_a_surrogate_pair_is_refused(byte_level):
    with pytest.raises(InvalidRequest, match="half of a surrogate pair"):
        byte_level.encode("a\ud800")


# --------------------------------------------------------------------------------------- control
def test_control_tokens_are_parsed_or_spelled(byte_level):
    text = "a<|im_start|>b<|mask|>"
    library = small_tokenizers.byte_level()
    library.encode_special_tokens = True
    assert byte_level.encode(text, parse_special=False) == library.encode(text).ids
    assert byte_level.control_tokens == {0, 1, 2, 3}
    assert [t for t in byte_level.encode(text) if t in byte_level.control_tokens] == [1, 3]
    spelled = byte_level.encode(text, parse_special=False)
    assert not byte_level.control_tokens & set(spelled)
    assert byte_level.decode(spelled) == text


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.sampled_from([*small_tokenizers.CONTROL, "<|", "|>", "<", "im_start"])))
def test_text_never_becomes_control(parts, byte_level):
    text = "".join(parts)
    ids = byte_level.encode(text, parse_special=False)
    assert not byte_level.control_tokens & set(ids)
    assert byte_level.decode(ids) == text


@pytest.fixture
def unigram():
    """A vocabulary that holds its control token as an ordinary piece, as T5's does."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((c, -3.0) for c in "abc</>s▁"), ("▁a", -1.0)]
    backend = Backend(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Metaspace(prepend_scheme="never")
    control = ["</s>", "<unk>"]
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    return backend


def test_text_never_becomes_control_even_by_merging(unigram, tmp_path):
    folder = small_tokenizers.save(unigram, tmp_path / "t5", eos_token="</s>", unk_token="<unk>")
    tokenizer = Tokenizer.from_folder(folder)
    unigram.encode_special_tokens = True
    assert 1 in unigram.encode("a</s>b").ids  # the library's switch alone does not help
    ids = tokenizer.encode("a</s>b", parse_special=False)
    assert 1 not in ids
    assert tokenizer.decode(ids) == "a</s>b"
    assert tokenizer.encode("a</s>")[-1] == 1


def test_a_control_token_of_one_character_cannot_be_spelled(tmp_path):
    backend = Backend(models.Unigram([("<unk>", 0.0), ("§", 0.0), ("a", -1.0)], unk_id=0))
    backend.add_special_tokens([AddedToken("§", special=True, normalized=False)])
    folder = small_tokenizers.save(backend, tmp_path / "odd", eos_token="§")
    with pytest.raises(InvalidRequest, match="contains the control token '§'"):
        Tokenizer.from_folder(folder).encode("a§", parse_special=False)


class Slow:
    """A backend that takes its time between being set up and encoding."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.encode_special_tokens = False

    def encode(self, text: str, **options: bool):
        time.sleep(0.002)
        self.backend.encode_special_tokens = self.encode_special_tokens
        return self.backend.encode(text, **options)


def test_threads_do_not_mix_up_parsing():
    tokenizer = Tokenizer.from_gguf(small_tokenizers.metadata(small_tokenizers.byte_level()))
    text = "x<|im_end|>"
    parsed, spelled = tokenizer.encode(text), tokenizer.encode(text, parse_special=False)
    tokenizer._backend = Slow(tokenizer._backend)

    def many(parse: bool) -> bool:
        wanted = parsed if parse else spelled
        return all(tokenizer.encode(text, parse_special=parse) == wanted for _ in range(10))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(many, [True, False] * 2))


def test_what_ends_a_text():
    data = small_tokenizers.metadata(small_tokenizers.byte_level(), eot_token_id=7)
    tokenizer = Tokenizer.from_gguf(data)
    assert tokenizer.end_tokens == {0, 2, 7}  # <|endoftext|> and <|im_end|> by name; 2, 7 declared
    assert tokenizer.bos_token == 1
    assert tokenizer.mask_token == 3
    data["tokenizer.ggml.token_type"][0] = 1  # a piece of text of the same look ends nothing
    assert Tokenizer.from_gguf(data).end_tokens == {2, 7}
    assert Tokenizer.from_gguf({**data, "tokenizer.ggml.mask_token_id": 9}).mask_token == 9


# -------------------------------------------------------------------------------------- decoding
@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 520), max_size=30), sizes=st.lists(st.integers(1, 4)))
def test_stream_equals_batch_for_random_ids(ids, sizes, byte_level, sentencepiece, gemma_like):
    for tokenizer in (byte_level, sentencepiece, gemma_like):
        for skip in (True, False):
            for continued in (True, False):
                stream = tokenizer.stream(skip_special=skip, continued=continued)
                pieces, at = [], 0
                for size in [*sizes, len(ids)]:
                    pieces.append(stream.push(ids[at : at + size]))
                    at += size
                pieces.append(stream.flush())
                whole = tokenizer.decode(ids, skip_special=skip, continued=continued)
                assert "".join(pieces) == whole


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 423), max_size=30), skip=st.booleans())
def test_byte_level_decodes_random_ids_like_the_library(ids, skip, byte_level, backend):
    expected = backend.decode(ids, skip_special_tokens=skip)
    assert byte_level.decode(ids, skip_special=skip) == expected


@pytest.mark.parametrize("prefix", [True, False])
@settings(max_examples=50, deadline=None)
@given(text=texts)
def test_sentencepiece_decodes_like_the_library(text, prefix):
    backend = _library(prefix)
    ours = Tokenizer.from_gguf(small_tokenizers.metadata(backend, add_space_prefix=prefix))
    ids = backend.encode(text).ids
    assert ours.decode(ids) == backend.decode(ids)


_made: dict[bool, Backend] = {}


def _library(prefix: bool) -> Backend:
    if prefix not in _made:
        _made[prefix] = small_tokenizers.sentencepiece(prefix=prefix)
    return _made[prefix]


def test_stream_holds_back_half_characters_and_nothing_else(byte_level):
    ids = byte_level.encode("a👩‍👩‍👧b")
    stream = byte_level.stream()
    pieces = [stream.push([token]) for token in ids]
    assert "\ufffd" not in "".join(pieces)
    assert "" in pieces
    assert pieces[0] == "a" and pieces[-1] == "b"
    assert stream.flush() == ""
    stream = byte_level.stream()
    assert stream.push(ids[:2]) == "a"
    assert stream.flush() == "\ufffd"


def test_continued_text_keeps_its_first_space(sentencepiece):
    ids = sentencepiece.encode("capital of", add_special=False)
    assert sentencepiece.decode(ids) == "capital of"
    assert sentencepiece.decode(ids, continued=True) == " capital of"


def test_ids_beyond_the_vocabulary_leave_no_text(byte_level, backend):
    assert byte_level.vocabulary_size == backend.get_vocab_size()
    assert byte_level.decode([5000]) == ""


def test_printable_tokens(byte_level, sentencepiece):
    def shown(tokenizer, text):
        return [tokenizer.token_text(t) for t in tokenizer.encode(text, add_special=False)]

    assert shown(byte_level, "\n<|im_end|>") == ["\\n", "<|im_end|>"]
    assert shown(byte_level, "ä") in (["ä"], ["\\xc3", "\\xa4"])
    assert shown(byte_level, "\u9999") == ["\\xe9", "\\xa6", "\\x99"]
    assert shown(sentencepiece, " capital")[-1].strip(" ").isalpha()


@pytest.mark.parametrize(
    ("decoder", "tokens", "expected"),
    [
        (None, ["Hello", "world"], "Hello world"),
        (decoders.WordPiece(prefix="##", cleanup=True), ["Hell", "##o", "world", "."], None),
        (decoders.WordPiece(prefix="##", cleanup=False), ["Hell", "##o", "."], None),
        (decoders.Metaspace(), ["▁Hello", "▁wor", "ld"], None),
        (decoders.Metaspace(prepend_scheme="never"), ["▁Hello", "ld"], None),
    ],
)
def test_other_decoders(decoder, tokens, expected, tmp_path):
    vocabulary = {token: number for number, token in enumerate([*tokens, "[UNK]"])}
    backend = Backend(models.WordLevel(vocabulary, unk_token="[UNK]"))
    if decoder is not None:
        backend.decoder = decoder
    tokenizer = Tokenizer.from_folder(small_tokenizers.save(backend, tmp_path / "words"))
    ids = list(range(len(tokens)))
    assert tokenizer.decode(ids) == (expected or backend.decode(ids))


def test_unknown_decoder_is_refused(tmp_path):
    backend = Backend(models.WordLevel({"a": 0}, unk_token="a"))
    backend.decoder = decoders.CTC()
    folder = small_tokenizers.save(backend, tmp_path / "ctc")
    with pytest.raises(CheckpointError, match=r"CTC.* is not supported; supported: ByteLevel"):
        Tokenizer.from_folder(folder)


# --------------------------------------------------------------------------------------- folders
@pytest.mark.parametrize(
    "config",
    [
        {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
        {"eos_token": {"__type": "AddedToken", "content": "<|im_end|>"}},
        {"eos_token": "<|im_end|>", "mask_token": "<|mask|>", "pad_token": None},
    ],
)
def test_folder_encodes_like_transformers(config, backend, tmp_path):
    from transformers import AutoTokenizer

    folder = small_tokenizers.save(backend, tmp_path / "folder", **config)
    ours, theirs = Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs(text)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.bos_token == theirs.bos_token_id
    assert ours.mask_token == 3
    assert 2 in ours.end_tokens


def test_vocab_and_merges_files_with_bos_as_opt_has_them(backend, tmp_path):
    from transformers import GPT2Tokenizer

    backend.model.save(str(tmp_path))
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_bos_token": True,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = Tokenizer.from_folder(tmp_path), GPT2Tokenizer.from_pretrained(tmp_path)
    for text in ["Hello world", "a\nb 12", "<|im_end|>"]:
        assert ours.encode(text) == [1, *ours.encode(text, add_special=False)]
        assert (
            ours.encode(text, add_special=False) == theirs(text, add_special_tokens=False).input_ids
        )


@pytest.mark.parametrize("kind", ["Qwen2Tokenizer", "DreamTokenizer"])
def test_vocab_and_merges_files_cut_text_as_qwen2(kind, backend, tmp_path):
    """Dream's checkpoints have no other files; its tokenizer is Qwen2's under another name."""
    from transformers import Qwen2Tokenizer

    backend.model.save(str(tmp_path))
    config = {"tokenizer_class": kind, "eos_token": "<|im_end|>", "unk_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = Tokenizer.from_folder(tmp_path), Qwen2Tokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, "1234 apples", "we'LL see\n\n  x", "cafe\u0301 (ok)!\n"]:
        assert ours.encode(text, add_special=False) == theirs(text).input_ids
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("vocab.json", "merges.txt"):
        (plain / name).write_bytes((tmp_path / name).read_bytes())
    assert Tokenizer.from_folder(plain).encode("e\u0301") != ours.encode("e\u0301")


@pytest.mark.parametrize("wanted", [True, False])
def test_folder_says_whether_bos_is_added(wanted, backend, tmp_path):
    from tokenizers import processors

    framed = Backend.from_str(backend.to_str())
    if not wanted:
        framed.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
        )
    folder = small_tokenizers.save(
        framed, tmp_path / "framed", add_bos_token=wanted, bos_token="<|im_start|>"
    )
    tokenizer = Tokenizer.from_folder(folder)
    assert (tokenizer.encode("a")[0] == 1) is wanted


def test_end_tokens_from_the_models_configs(backend, tmp_path):
    folder = small_tokenizers.save(backend, tmp_path / "ends", eos_token="<|im_end|>")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 17]}')
    (folder / "config.json").write_text('{"eos_token_id": 18}')
    assert Tokenizer.from_folder(folder).end_tokens == {0, 2, 17, 18}


def test_chat_template_of_a_folder(backend, tmp_path):
    folder = small_tokenizers.save(backend, tmp_path / "chat", chat_template="plain")
    assert Tokenizer.from_folder(folder).chat_template == "plain"
    several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "y"}]
    small_tokenizers.save(backend, folder, chat_template=several)
    assert Tokenizer.from_folder(folder).chat_template == "y"
    (folder / "chat_template.jinja").write_text("file")
    assert Tokenizer.from_folder(folder).chat_template == "file"


def test_added_tokens_of_the_config(backend, tmp_path):
    new = {"424": {"content": "<tool>", "special": True}, "1": {"content": "<|im_start|>"}}
    folder = small_tokenizers.save(backend, tmp_path / "added", added_tokens_decoder=new)
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.encode("<tool>") == [424]
    assert tokenizer.vocabulary_size == 425
    wrong = {"700": {"content": "<tool>", "special": True}}
    small_tokenizers.save(backend, folder, added_tokens_decoder=wrong)
    with pytest.raises(CheckpointError, match="gives '<tool>' the id 700"):
        Tokenizer.from_folder(folder)


def test_damaged_folders(tmp_path):
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="unusable"):
        Tokenizer.from_folder(tmp_path)
    for damaged in (b"{", b"\xff", b"[]", b"[" * 100_000):
        (tmp_path / "tokenizer_config.json").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
            Tokenizer.from_folder(tmp_path)


def test_json_is_the_librarys_format(byte_level):
    copy = Backend.from_str(byte_level.to_json())
    for text in TEXTS:
        assert copy.encode(text).ids == byte_level.encode(text)
