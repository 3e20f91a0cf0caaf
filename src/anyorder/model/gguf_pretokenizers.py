"""How byte-level BPE vocabularies in GGUF files cut text into words before merging.

A GGUF file does not hold the rule, only its name (`tokenizer.ggml.pre`). The names and what they
stand for are those of llama.cpp (src/llama-vocab.cpp); each pattern is the one in the tokenizer's
own file of the model family that the name is taken from. Patterns apply one after the other, each
to the pieces that those before it left.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PreTokenizer:
    """One way of cutting text."""

    patterns: tuple[str, ...]
    add_bos: bool = False
    """Whether a text begins with the BOS token where the file does not say."""
    ignore_merges: bool = False
    """A word that is a token as a whole is not merged from its bytes."""


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS_AND_SIGNS = r"[^\r\n\p{L}\p{N}]?\p{L}+|{digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|"


def _cl100k(digits: str) -> str:
    """The pattern of GPT-4's first vocabulary and its many descendants."""
    return _ENGLISH + "|" + _WORDS_AND_SIGNS.replace("{digits}", digits) + _SPACES


def _o200k(digits: str, contractions: str) -> str:
    """The pattern of GPT-4o: a word ends where capitals follow small letters."""
    capitals, small = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    words = (
        rf"[^\r\n\p{{L}}\p{{N}}]?{capitals}*{small}+{contractions}|"
        rf"[^\r\n\p{{L}}\p{{N}}]?{capitals}+{small}*{contractions}|"
    )
    return words + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES


# Written as numbers: characters that a normalising editor would change into their look-alikes.
_DEEPSEEK_LETTERS = (
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅ"
    r"Ὀ-Ὅὐ-ὗὙὛὝὟ-\x{1F7D}ᾀ-ᾴᾶ-ᾼ\x{1FBE}ῂ-ῄῆ-ῌῐ-\x{1FD3}ῖ-\x{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛ"
    r"Ꜣ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
_CJK_AND_HANGUL = r"[一-龥ࠀ-一가-퟿]+"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"

_gpt2 = PreTokenizer((_GPT2,))
_gpt2_single_digits = PreTokenizer((r"\p{N}", _GPT2))
_qwen2 = PreTokenizer((_cl100k(r"\p{N}"),))
_cl100k_plain = PreTokenizer((_cl100k(r"\p{N}{1,3}"),))
_llama3 = PreTokenizer((_cl100k(r"\p{N}{1,3}"),), add_bos=True, ignore_merges=True)
_bloom = PreTokenizer((_BLOOM,))

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais"), _gpt2),
    **dict.fromkeys(("gigachat", "exaone4", "a.x-4.0", "mellum", "trillion"), _gpt2),
    **dict.fromkeys(("modern-bert", "roberta-bpe", "granite-docling"), _gpt2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), _gpt2_single_digits),
    **dict.fromkeys(("codeshell", "exaone", "minerva-7b", "mellum2"), _gpt2_single_digits),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1"), _llama3),
    **dict.fromkeys(("pixtral", "midm-2.0", "lfm2"), _llama3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), _cl100k_plain),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez"), _qwen2),
    **dict.fromkeys(("kormo", "f2llmv2", "solar-open", "grok-2"), _qwen2),
    "qwen35": PreTokenizer(
        (
            rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}|"
            rf" ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
        )
    ),
    **dict.fromkeys(
        ("bailingmoe", "bailingmoe2", "llada-moe"),
        PreTokenizer(
            (
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
                r"\s*[\r\n]|\s+(?!\S)|\s+",
            )
        ),
    ),
    "tekken": PreTokenizer((_o200k(r"\p{N}", ""),), add_bos=True, ignore_merges=True),
    **dict.fromkeys(
        ("gpt-4o", "llama4", "kanana2", "minimax-m2"),
        PreTokenizer((_o200k(r"\p{N}{1,3}", _ENGLISH + "?"),)),
    ),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            _DEEPSEEK_LETTERS,
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            _CJK_AND_HANGUL,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": PreTokenizer(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_AND_HANGUL, r"\p{N}")
    ),
    **dict.fromkeys(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm"),
        PreTokenizer(
            (
                r"\p{N}{1,3}",
                r"[一-龥぀-ゟ゠-ヿ]+",
                r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"
                r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES,
            )
        ),
    ),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), _bloom),
    "viking": PreTokenizer((_BLOOM, r"\p{N}")),
}
