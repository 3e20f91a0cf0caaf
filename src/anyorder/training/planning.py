"""Structured texts become planned documents (`core.plans`), by rules, and these become tokens.

`plan_text` finds what can be written side by side: neighbouring items of a list, short sections
under headings, paragraphs. Each is a span; its topic is its heading or its first words. All else is
plain text between the groups. Without tags and topics, a planned text is the text it was made of,
character by character.

Promised lengths are put in when a text is encoded, as they count tokens: the fewest units that hold
the span, or what the text itself promises, if that is more. The rest of the promise is filled with
padding, which teaches that promises may be too long. No model has a say in any of this; the paper
(arXiv 2510.18087) had its data tagged by one.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from anyorder.core.errors import UserError
from anyorder.core.plans import (
    LENGTH_UNIT,
    SPAN,
    SPAN_END,
    SYNC,
    TAGS,
    TOPIC,
    TOPIC_END,
    PlanTokens,
)

_MOST_SPANS = 4
"""Of a group."""
_MOST_WORDS = 100
"""Of a span; longer pieces stay plain."""
_TOPIC_WORDS = 4

_ELEMENT = re.compile(
    f"{re.escape(TOPIC)}(?P<topic>.*?){re.escape(TOPIC_END)}"
    f"|{re.escape(SPAN)}(?P<span>.*?){re.escape(SPAN_END)}|(?P<sync>{re.escape(SYNC)})",
    re.DOTALL,
)
_ITEM = re.compile(r"(?P<indent>[ \t]*)(?:[-*+•]|\d{1,3}[.)])\s+\S")
_HEADING = re.compile(r"#{1,6}\s+\S")
_NUMBER = re.compile(r"\s*(?<!\d)(\d{1,4})\s*$")
_UNDERLINE = re.compile(r"([=\-~^\"'*#])\1{2,}\s*$")


# ------------------------------------------------------------------------------------------- rules
@dataclass(frozen=True, kw_only=True)
class _Piece:
    """Some lines of a text, with the blank ones behind them."""

    kind: str
    """heading, item, paragraph or section."""
    text: str

    @property
    def topic(self) -> str:
        """The heading's words, or the first words."""
        line = self.text.strip().splitlines()[0]
        if self.kind in ("item", "paragraph"):
            marker = _ITEM.match(line) if self.kind == "item" else None
            words = line[marker.end() - 1 :] if marker else " ".join(self.text.split())
            line = " ".join(words.split()[:_TOPIC_WORDS])
        line = line.strip("# \t*_").rstrip(" .,;:-")
        # A number at the end would be taken for the promised length.
        return f"{line}:" if line[-1:].isdigit() or not line else line

    @property
    def fits(self) -> bool:
        """Is it short enough for a span?"""
        return len(self.text.split()) <= _MOST_WORDS


def plan_text(text: str) -> str:
    """The text with plans; as it was, if nothing in it can be planned. UserError if it holds tags
    already."""
    if tag := next((tag for tag in TAGS if tag in text), None):
        raise UserError(f"the text holds the tag {tag} already; read it as tagged.")
    if not text.strip():
        return text
    planned: list[str] = []
    for group in _groups(_sections(_pieces(text))):
        if len(group) == 1:
            planned.append(group[0].text)
            continue
        planned += [f"{TOPIC}{piece.topic}{TOPIC_END}" for piece in group]
        planned += [f"{SPAN}{piece.text}{SPAN_END}" for piece in group]
        planned.append(SYNC)
    if planned and planned[-1] == SYNC:
        planned.pop()  # the text's end does as well
    return "".join(planned)


def _pieces(text: str) -> list[_Piece]:
    lines = text.splitlines(keepends=True)
    found: list[_Piece] = []
    start = 0
    while start < len(lines) and not lines[start].strip():
        start += 1
    lead, lines = "".join(lines[:start]), lines[start:]
    while lines:
        kind, end = _extent(lines)
        while end < len(lines) and not lines[end].strip():
            end += 1
        found.append(_Piece(kind=kind, text=lead + "".join(lines[:end])))
        lead, lines = "", lines[end:]
    return found


def _extent(lines: Sequence[str]) -> tuple[str, int]:
    """Kind of the piece that begins with the first line, and how many lines it has."""
    if _HEADING.match(lines[0]):
        return "heading", 1
    if len(lines) > 1 and _UNDERLINE.match(lines[1]) and not _ITEM.match(lines[0]):
        return "heading", 2
    item = _ITEM.match(lines[0])
    end = 1
    while end < len(lines) and lines[end].strip() and not _HEADING.match(lines[end]):
        inner = _ITEM.match(lines[end])
        if inner and (item is None or len(inner["indent"]) <= len(item["indent"])):
            break
        end += 1
    return ("paragraph" if item is None else "item"), end


def _sections(pieces: Sequence[_Piece]) -> list[_Piece]:
    """Neighbouring sections that are short enough each become one piece."""
    starts = [place for place, piece in enumerate(pieces) if piece.kind == "heading"]
    bounds = [0, *starts, len(pieces)]
    parts = [pieces[a:b] for a, b in itertools.pairwise(bounds) if a < b]
    whole = [
        _Piece(kind="section", text="".join(piece.text for piece in part))
        if part[0].kind == "heading" and len(part) > 1
        else None
        for part in parts
    ]
    whole = [section if section and section.fits else None for section in whole]
    found: list[_Piece] = []
    for place, part in enumerate(parts):
        section = whole[place]
        beside = whole[max(place - 1, 0) : place] + whole[place + 1 : place + 2]
        if section is not None and any(beside):
            found.append(section)
        else:
            found += part
    return found


def _groups(pieces: Sequence[_Piece]) -> Iterator[Sequence[_Piece]]:
    """Runs of neighbours of one kind that fit into spans, in parts of nearly equal size; others
    alone."""
    start = 0
    while start < len(pieces):
        end = start
        while (
            end < len(pieces)
            and pieces[end].kind == pieces[start].kind != "heading"
            and pieces[end].fits
        ):
            end += 1
        count = max(end - start, 1)
        num_groups = -(-count // _MOST_SPANS)
        for number in range(num_groups):
            first, last = count * number // num_groups, count * (number + 1) // num_groups
            yield pieces[start + first : start + last]
        start += count


# ---------------------------------------------------------------------------------------- encoding
@dataclass(frozen=True, kw_only=True)
class _Group:
    topics: tuple[str, ...]
    spans: tuple[str, ...]
    synced: bool


def without_plans(text: str) -> str:
    """A planned text without its tags and topics."""
    return "".join(
        part if isinstance(part, str) else "".join(part.spans) for part in _read_plan(text)
    )


def encode_plan(text: str, tags: PlanTokens, spell: Callable[[str], list[int]]) -> list[int]:
    """Token ids of a planned text, with promised lengths and with padding. `spell` encodes text
    without control tokens. UserError says what is malformed."""
    ids: list[int] = []
    for part in _read_plan(text):
        if isinstance(part, str):
            ids += spell(part)
            continue
        spans = [spell(span) for span in part.spans]
        units = []
        for topic, span in zip(part.topics, spans, strict=True):
            number = _NUMBER.search(topic)
            words = topic[: number.start()] if number else topic.rstrip()
            promised = int(number[1]) if number else 0
            units.append(max(promised, -(-len(span) // LENGTH_UNIT), 1))
            ids += [tags.topic, *spell(f"{words} {units[-1]}"), tags.topic_end]
        for span, count in zip(spans, units, strict=True):
            padding = [tags.pad] * (count * LENGTH_UNIT - len(span))
            ids += [tags.span, *span, *padding, tags.span_end]
        ids += [tags.sync] * part.synced
    return ids


def _read_plan(text: str) -> list[str | _Group]:
    """Plain text and groups in order; white space between a group's tags is no part of it.

    UserError if tags are not closed, nested or out of place, or if a group has not one span for
    each topic.
    """
    parts: list[str | _Group] = []
    topics: list[str] = []
    spans: list[str] = []

    def close(*, synced: bool) -> None:
        if len(topics) != len(spans) or (synced and not spans):
            raise UserError(f"a plan has {len(topics)} topics and {len(spans)} spans.")
        if spans:
            parts.append(_Group(topics=tuple(topics), spans=tuple(spans), synced=synced))
        topics.clear()
        spans.clear()

    place = 0
    for match in [*_ELEMENT.finditer(text), None]:
        plain = text[place : match.start() if match else len(text)]
        inner = "" if match is None else (match["topic"] or match["span"] or "")
        if tag := next((tag for tag in TAGS if tag in plain or tag in inner), None):
            raise UserError(f"the tag {tag} is not closed, or is inside of another.")
        if topics or spans:
            if plain.strip():
                raise UserError(f"{plain[:40]!r} stands between a plan and its {SYNC}.")
        elif plain:
            parts.append(plain)
        if match is None:
            close(synced=False)
        elif match["sync"]:
            close(synced=True)
        elif match["span"] is not None:
            spans.append(match["span"])
        elif spans:
            raise UserError(f"the topic {inner!r} stands behind spans, before their {SYNC}.")
        else:
            topics.append(inner)
        place = match.end() if match else place
    return parts
