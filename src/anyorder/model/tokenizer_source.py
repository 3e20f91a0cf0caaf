"""What any source of a tokenizer (a folder, a GGUF file) has to say about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers

END_OF_TURN = frozenset(
    {"<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<｜end▁of▁sentence｜>"}
    | {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|end|>", "<EOT>", "[EOT]"}
    | {"<end_of_turn>", "<|end_of_turn|>", "<end_of_utterance>", "<|role_end|>"}
)
"""Control tokens that end a text or a turn, whichever model has them."""
MASK = ("<|mask|>", "<|mdm_mask|>", "<mask>", "[MASK]", "<|MASK|>")
"""Control tokens that stand for a place to be filled in, by preference."""
INFILL = (
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
)
"""Control tokens before prefix, suffix and middle of a text whose middle is filled in: StarCoder's,
Qwen's and CodeGemma's, SantaCoder's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenizerSource:
    """A tokenizer as its files describe it."""

    backend: tokenizers.Tokenizer
    vocabulary_size: int
    control: Mapping[str, int]
    """Control tokens: what they look like in a template, and their ids."""
    added: Mapping[int, str]
    """Further tokens that are found in text as they are, before any splitting."""
    bos: int | None = None
    eos: tuple[int, ...] = ()
    unknown: int | None = None
    mask: int | None = None
    chat_template: str | None = None
    template_variables: Mapping[str, str] = field(default_factory=dict)
    """bos_token, eos_token, ... as text, for the chat template."""

    @property
    def end_tokens(self) -> frozenset[int]:
        """Declared end tokens, and control tokens that by their name end a turn."""
        by_name = (token for text, token in self.control.items() if text in END_OF_TURN)
        return frozenset((*self.eos, *by_name))

    @property
    def mask_token(self) -> int | None:
        """The declared mask token, or a control token named like one."""
        if self.mask is not None:
            return self.mask
        return next((self.control[text] for text in MASK if text in self.control), None)

    @property
    def infill_tokens(self) -> tuple[int, int, int] | None:
        """Those of `INFILL`, where all three are there; with a role or without."""
        known = {**{text: token for token, text in self.added.items()}, **self.control}
        for names in INFILL:
            if all(name in known for name in names):
                prefix, suffix, middle = (known[name] for name in names)
                return prefix, suffix, middle
        return None


def frame(backend: tokenizers.Tokenizer, *, before: Iterable[int], after: Iterable[int]) -> None:
    """Make `backend` put the tokens `before` and `after` around every text."""
    from tokenizers import processors

    first = [(backend.id_to_token(token), token) for token in before]
    last = [(backend.id_to_token(token), token) for token in after]
    template = [*(text for text, _ in first), "$A", *(text for text, _ in last)]
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=sorted({*first, *last})
    )
