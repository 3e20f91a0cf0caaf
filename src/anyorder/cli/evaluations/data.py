"""What `--data` names: a recipe's held-out part, a corpus, files, or prompts; as documents.

A recipe's part is what its training left out, by the same rule, so that models trained with other
recipes on the same sources are measured on the same text. Files and corpora are taken whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from anyorder.cli.files import read_text
from anyorder.core.errors import InvalidRequest, UnknownName, UserError
from anyorder.core.request import Prompt

if TYPE_CHECKING:
    from anyorder.evaluation.windows import HeldOutPair, HeldOutText
    from anyorder.model.tokenizer import Tokenizer
    from anyorder.training.config import Recipe
    from anyorder.training.documents import Document, Part
    from anyorder.training.readers import Source

BUILT_IN = "builtin:"
_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".tsv": "pairs"}
_PARTS = ("validation", "test")


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where documents come from."""

    sources: tuple[Source, ...]
    recipe: Recipe | None
    part: Part
    name: str
    """For notes."""

    def documents(self, *, pairs: bool = False) -> Iterator[Document]:
        """Those of the part, or all where no recipe divides them."""
        from anyorder.training.data import held_out

        for source in self.sources:
            if self.recipe is None:
                yield from held_out(source, "train", validation=0.0, pairs=pairs)
            else:
                shares = self.recipe.data
                yield from held_out(
                    source, self.part, validation=shares.validation, test=shares.test, pairs=pairs
                )


def open_data(given: list[str] | None, part: str | None, *, usual: Part = "validation") -> Data:
    """`--data`, with `--part` of a recipe, or else its usual part."""
    from anyorder.training.readers import Source

    if not given:
        raise InvalidRequest("nothing to measure on; name files, a corpus or a recipe with --data.")
    if part is not None and part not in _PARTS:
        raise InvalidRequest(f"--part must be one of {', '.join(_PARTS)}, got {part!r}.")
    if len(given) == 1 and given[0].endswith(".toml"):
        return _recipe(Path(given[0]), "test" if part == "test" else usual)
    if part is not None:
        raise InvalidRequest("--part is a recipe's; files and corpora are taken whole.")
    sources = []
    for name in given:
        if name.endswith(".toml"):
            raise InvalidRequest(f"a recipe stands alone: {name} was given with other data.")
        if Path(name).exists() or any(mark in name for mark in "/*."):
            kind = _FORMATS.get(Path(name).suffix, "text")
            sources.append(Source(path=name, format=kind))  # type: ignore[arg-type]
        else:
            sources.append(Source(corpus=_corpus(name)))
    return Data(sources=tuple(sources), recipe=None, part="train", name=" ".join(given))


def _corpus(name: str) -> str:
    from anyorder.training import corpora

    if name not in corpora.CATALOG:
        raise UnknownName("data set or file", name[:100], corpora.CATALOG)
    return name


def _recipe(path: Path, part: Part) -> Data:
    from anyorder.training.config import read_recipe

    recipe = read_recipe(path)
    if part != "train" and not getattr(recipe.data, part):
        raise UserError(
            f"{path} holds no {part} data out; set [data] {part} above 0, or name files."
        )
    sources = [
        source
        if source.path is None
        else dataclasses.replace(source, path=str(recipe.path(source.path)))
        for source in recipe.data.sources
    ]
    return Data(
        sources=tuple(sources),
        recipe=recipe,
        part=part,
        name=f"{path}, {part} part",
    )


def held_out_texts(data: Data, tokenizer: Tokenizer, limit: int | None) -> list[HeldOutText]:
    """The first so many documents as tokens, with what is to be predicted of each."""
    from anyorder.evaluation.windows import HeldOutText
    from anyorder.training.documents import Encoder

    encoder = Encoder.of(tokenizer)
    texts = []
    for document in islice(data.documents(), limit):
        tokens, targets = encoder.encode(document)
        text = document.plain_text
        if document.messages:
            text = "\n".join(m["content"] for m in document.messages if m["role"] == "assistant")
        elif targets[0]:  # nothing comes before it, so it is not asked for
            text = text.removeprefix(tokenizer.decode(tokens[:1]))
        texts.append(HeldOutText(tokens=tokens, targets=targets, text=text))
    if not texts:
        raise UserError(f"{data.name} has no documents.")
    return texts


def held_out_pairs(
    data: Data, tokenizer: Tokenizer, start: int | None, limit: int | None
) -> list[HeldOutPair]:
    """The first so many pairs as tokens; `start` is where the decoder's texts begin."""
    from anyorder.evaluation.windows import HeldOutPair, HeldOutText
    from anyorder.training.documents import PairEncoder

    encoder = PairEncoder.of(tokenizer, start)
    pairs = []
    for document in islice(data.documents(pairs=True), limit):
        source, tokens = encoder.encode(document)
        targets = [False, *[True] * (len(tokens) - 1)]
        target = HeldOutText(tokens=tokens, targets=targets, text=document.text)
        pairs.append(HeldOutPair(source=source, target=target))
    if not pairs:
        raise UserError(f"{data.name} has no pairs.")
    return pairs


# ----------------------------------------------------------------------------------------- prompts
@dataclass(frozen=True, kw_only=True)
class PromptItem:
    """Something to answer or to go on with."""

    prompt: Prompt
    text: str
    """The prompt as text."""
    reference: str | None = None
    """What really follows, where that is known."""


def open_prompts(
    given: list[str] | None,
    part: str | None,
    tokenizer: Tokenizer,
    *,
    num: int,
    num_prompt_tokens: int,
) -> list[PromptItem]:
    """At most `num` prompts: built-in ones, the lines of a text file, or documents' beginnings.

    A document's own prompt, or what a chat's last answer answers, or its first
    `num_prompt_tokens` tokens."""
    if given and all(name.startswith(BUILT_IN) for name in given):
        chat = tokenizer.chat_template is not None
        texts = [text for name in given for text in built_in(name)]
        return [_asked(text, chat=chat) for text in texts[:num]]
    if given and len(given) == 1 and given[0].endswith(".txt") and Path(given[0]).is_file():
        lines = [line for line in read_text(Path(given[0])).splitlines() if line.strip()]
        items = [PromptItem(prompt=line, text=line) for line in lines[:num]]
    else:
        documents = open_data(given, part).documents()
        found = (_begun(document, tokenizer, num_prompt_tokens) for document in documents)
        # A prompt that was answered several times is asked once.
        different: dict[str, PromptItem] = {}
        for item in found:
            if item is not None:
                different.setdefault(item.text, item)
            if len(different) == num:
                break
        items = list(different.values())
    if not items:
        raise UserError(f"{' '.join(given or [])} has no prompts.")
    return items


def built_in(name: str) -> tuple[str, ...]:
    """The prompts of `builtin:NAME`."""
    from anyorder.evaluation.prompt_sets import PROMPT_SETS

    chosen = name.removeprefix(BUILT_IN)
    if chosen not in PROMPT_SETS:
        raise UnknownName("set of prompts", chosen, PROMPT_SETS)
    return PROMPT_SETS[chosen]


def _asked(text: str, *, chat: bool) -> PromptItem:
    prompt: Prompt = [{"role": "user", "content": text}] if chat else text
    return PromptItem(prompt=prompt, text=f"{text}\n" if chat else text)


def _begun(document: Document, tokenizer: Tokenizer, num_prompt_tokens: int) -> PromptItem | None:
    if document.messages:
        last = max(i for i, m in enumerate(document.messages) if m["role"] == "assistant")
        asked, answer = list(document.messages[:last]), document.messages[last]
        text = "".join(f"{message['content']}\n" for message in asked)
        return PromptItem(prompt=asked, text=text, reference=str(answer["content"]))
    if document.prompt:
        return PromptItem(prompt=document.prompt, text=document.prompt, reference=document.text)
    tokens = tokenizer.encode(document.text, parse_special=False)
    if len(tokens) <= num_prompt_tokens:
        return None
    begun = tokens[:num_prompt_tokens]
    return PromptItem(
        prompt=begun,
        text=tokenizer.decode(begun),
        reference=tokenizer.decode(tokens[num_prompt_tokens:], continued=True),
    )
