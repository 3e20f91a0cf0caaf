"""Plans read off token ids: well-formed ones, and every way to get them wrong.

Tokens are spelt as characters: < and > enclose a topic, ( and ) a span, | is a sync and _ padding.
"""

from __future__ import annotations

import pytest
import torch

from anyorder.core.plans import PlanTokens, Promise, plan_visible, promises, span_numbers

TAGS = PlanTokens(
    topic=ord("<"),
    topic_end=ord(">"),
    span=ord("("),
    span_end=ord(")"),
    sync=ord("|"),
    pad=ord("_"),
    digits={ord(c): c for c in "0123456789 "} | {1000: " 12", 1001: "3 "},
)


def ids(text: str) -> list[int]:
    return [{"Z": 1000, "Y": 1001}.get(c, ord(c)) for c in text]


def read(text: str) -> list[tuple[str, int | None]]:
    return [("".join(map(chr, p.topic)), p.length) for p in promises(ids(text), TAGS)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("no plan (a) | b", []),
        ("<a 3><b 12>", [("a", 3), ("b", 12)]),
        ("x<a 3>y<b 1>z", [("a", 3), ("b", 1)]),
        ("<a 3>(u)|<b 2>", [("b", 2)]),
        ("<a 3>|", []),
        # The number is what stands at the end, in as many tokens as it takes.
        ("<aZ>", [("a", 12)]),
        ("<aY>", [("a", 3)]),
        ("<in 1990 4>", [("in 1990", 4)]),
        ("<7 dwarfs 2 >", [("7 dwarfs", 2)]),
        ("<5>", [("", 5)]),
        ("<a 03>", [("a 0", 3)]),
        # No number.
        ("<a>", [("a", None)]),
        ("<a 0>", [("a 0", None)]),
        ("<a 12345>", [("a 12345", None)]),
        ("<a3b>", [("a3b", None)]),
        ("<>", [("", None)]),
        # Not closed, nested, closed twice.
        ("<a 3", [("a", 3)]),
        ("<a 3<b 2>", [("a", 3), ("b", 2)]),
        ("<a 3(u)<b 2>", [("a", 3), ("b", 2)]),
        ("<a 3>>", [("a", 3)]),
        ("a 3>", []),
        ("<a 3|<b 2>", [("b", 2)]),
    ],
)
def test_promises(text: str, expected: list[tuple[str, int | None]]) -> None:
    assert read(text) == expected


def test_a_promise_keeps_the_topics_ids() -> None:
    assert promises([*ids("<ab"), 1000, ord(">")], TAGS) == [
        Promise(topic=(ord("a"), ord("b")), length=12)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abc", "..."),
        ("<a>(bc)(d)|(e)f", "...0000111.222."),
        # Not closed: until any other tag, or the end.
        ("(ab(c)", "000111"),
        ("(ab|c", "000.."),
        ("(ab<c>", "000..."),
        ("(a_b", "0000"),
        # An end without a beginning: cut off, if no tag was there before.
        ("ab)c", "000."),
        ("ab)(c)", "000111"),
        ("<a>b)c", "......"),
        ("(a)b)", "000.."),
        (")", "0"),
        ("()", "00"),
    ],
)
def test_span_numbers(text: str, expected: str) -> None:
    found = "".join("." if n < 0 else str(n) for n in span_numbers(ids(text), TAGS))
    assert found == expected


DRAWN = {
    # A plan, two spans, a sync, text.
    "p<>(a)(b)|t": """
        1..........
        11.........
        111........
        111111.....
        111111.....
        111111.....
        111...111..
        111...111..
        111...111..
        1111111111.
        11111111111
    """,
    # Without a sync, what follows does not see the spans; the next group sees those before it.
    "p(a)x|(b)(c)": """
        1...........
        1111........
        1111........
        1111........
        1...1.......
        111111......
        111111111...
        111111111...
        111111111...
        111111...111
        111111...111
        111111...111
    """,
}


@pytest.mark.parametrize("text", DRAWN)
def test_who_sees_whom(text: str) -> None:
    tokens = torch.tensor([ids(text)])
    spans = torch.tensor([span_numbers(ids(text), TAGS)])
    found = plan_visible(spans, (tokens == TAGS.sync).cumsum(1))
    rows = ["".join("1" if sees else "." for sees in row) for row in found[0]]
    assert rows == DRAWN[text].split()
