"""Rules that find plans in texts; planned texts as tokens, counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.model.small_tokenizers import CORPUS

from anyorder.core.errors import UserError
from anyorder.core.plans import LENGTH_UNIT, TAGS, PlanTokens, promises, span_numbers
from anyorder.model.tokenizer import Tokenizer
from anyorder.training.documents import Document, Encoder
from anyorder.training.planning import encode_plan, plan_text, without_plans
from anyorder.training.readers import Source, read
from anyorder.training.tokenizers import train_tokenizer

PLAN = PlanTokens(topic=1, topic_end=2, span=3, span_end=4, sync=5, pad=6, digits={})


def spell(text: str) -> list[int]:
    return [ord(character) for character in text]


# ------------------------------------------------------------------------------------------- rules
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Only one paragraph,\nof two lines.\n", "Only one paragraph,\nof two lines.\n"),
        (
            "To buy:\n\n- green apples, ripe and sweet\n- pears\n  (two)\n\nThat is all.",
            "To buy:\n\n<topic>green apples, ripe and</topic><topic>pears</topic>"
            "<async>- green apples, ripe and sweet\n</async><async>- pears\n  (two)\n\n</async>"
            "<sync/>That is all.",
        ),
        (
            "1. Wash.\n   - well\n   - twice\n2. Dry in 1990\n",
            "<topic>Wash</topic><topic>Dry in 1990:</topic>"
            "<async>1. Wash.\n   - well\n   - twice\n</async><async>2. Dry in 1990\n</async>",
        ),
        (
            "# All\n\n## Rivers\nThe Rhine.\n\n## Lakes\nLake Constance.\n",
            "# All\n\n<topic>Rivers</topic><topic>Lakes</topic>"
            "<async>## Rivers\nThe Rhine.\n\n</async><async>## Lakes\nLake Constance.\n</async>",
        ),
        (
            "Rivers\n======\nThe Rhine.\n\nLakes\n=====\nLake Constance.",
            "<topic>Rivers</topic><topic>Lakes</topic><async>Rivers\n======\nThe Rhine.\n\n</async>"
            "<async>Lakes\n=====\nLake Constance.</async>",
        ),
        (
            "\nShe was the youngest of two.\n\nHer mother had died.",
            "<topic>She was the youngest</topic><topic>Her mother had died</topic>"
            "<async>\nShe was the youngest of two.\n\n</async><async>Her mother had died.</async>",
        ),
    ],
)
def test_what_is_planned(text: str, expected: str) -> None:
    assert plan_text(text) == expected


def test_long_lists_make_several_groups_and_long_pieces_none() -> None:
    planned = plan_text("".join(f"- item {'abcdefghi'[n]}\n" for n in range(9)))
    assert [group.count("<async>") for group in planned.split("<sync/>")] == [3, 3, 3]
    long = "word " * 300 + "\n\n"
    assert plan_text(long + long) == long + long
    assert plan_text("one\n\n" + long + "two\n\nthree\n\n") == (
        "one\n\n" + long + "<topic>two</topic><topic>three</topic>"
        "<async>two\n\n</async><async>three\n\n</async>"
    )


LINES = st.sampled_from(
    ["", " ", "- a b", "  - c", "12. d 7", "* ", "# e", "##", "===", "f g h i j", "\x0ck", "l\r"]
)


@given(st.lists(LINES, max_size=12).map("\n".join))
def test_without_plans_it_is_the_same_text(text: str) -> None:
    planned = plan_text(text)
    assert without_plans(planned) == text
    found = encode_plan(planned, PLAN, spell)
    spans = span_numbers(found, PLAN)
    for number in range(max(spans, default=-1) + 1):
        length = spans.count(number) - 2
        assert length > 0 and length % LENGTH_UNIT == 0


def test_tags_in_a_text_are_no_plan() -> None:
    for tag in TAGS:
        with pytest.raises(UserError, match=f"holds the tag {tag} already"):
            plan_text(f"one {tag}\n\ntwo")


# ---------------------------------------------------------------------------------------- encoding
def test_promised_lengths_hold_the_span() -> None:
    text = (
        "x<topic>a</topic> <topic>b 3</topic>\n<async>0123456789</async><async>01</async><sync/>y"
    )
    expected = [
        *spell("x"),
        *(1, *spell("a 1"), 2),
        *(1, *spell("b 3"), 2),
        *(3, *spell("0123456789"), 4),
        *(3, *spell("01"), *[6] * 28, 4),
        *(5, *spell("y")),
    ]
    assert encode_plan(text, PLAN, spell) == expected
    # A promise that is too short is made good.
    longer = encode_plan("<topic>c 1</topic><async>01234567890</async>", PLAN, spell)
    assert longer == [1, *spell("c 2"), 2, 3, *spell("01234567890"), *[6] * 9, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<topic>a<async>b</async>", "the tag <topic> is not closed"),
        ("<topic>a</topic>", "a plan has 1 topics and 0 spans"),
        ("<async>a</async>", "a plan has 0 topics and 1 spans"),
        ("<topic>a</topic><sync/>", "a plan has 1 topics and 0 spans"),
        ("a<sync/>b", "a plan has 0 topics and 0 spans"),
        ("<topic>a</topic>b<async>c</async>", "'b' stands between a plan and its <sync/>"),
        ("<topic>a</topic><async>c</async>d", "'d' stands between a plan and its <sync/>"),
        ("<topic>a</topic><async>b<async>c</async></async>", "the tag <async> is not closed, or"),
        ("<topic>a<topic>b</topic></topic><async>c</async>", "the tag <topic> is not closed, or"),
        ("a</async>", "the tag </async> is not closed, or"),
        ("a<pad>", "the tag <pad> is not closed, or"),
        (
            "<topic>a</topic><async>b</async><topic>c</topic><async>d</async>",
            "the topic 'c' stands behind spans, before their <sync/>",
        ),
    ],
)
def test_malformed_plans_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        encode_plan(text, PLAN, spell)
    assert message in str(refused.value)


# ------------------------------------------------------------------------------ files and tokenizer
@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    return train_tokenizer(CORPUS, folder, size=300, further=TAGS)


def test_documents_become_tokens_that_read_as_plans(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = tmp_path / "a.txt"
    file.write_text("To buy:\n- apples\n- two <mask> pears\n\nEnd.\n")
    (document,) = read(Source(path=str(file), plan="rules"), _fail)
    assert document.planned and document.plain_text == file.read_text()
    assert document.key == document.plain_text
    tokens, targets = Encoder.of(tokenizer).encode(document)
    tags = tokenizer.plan_tokens
    assert tags is not None and all(targets)
    found = promises(tokens[: tokens.index(tags.span)], tags)
    assert [(tokenizer.decode(p.topic), p.length) for p in found] == [
        ("apples", 1),
        ("two <mask> pears", 2),
    ]
    assert tokenizer.decode([t for t in tokens if t != tags.pad]).endswith("pears\n\nEnd.\n")
    spans = span_numbers(tokens, tags)
    assert [spans.count(n) for n in (0, 1)] == [LENGTH_UNIT + 2, 2 * LENGTH_UNIT + 2]
    # Written out and read back as tagged, it is the same; a plain text has no tags.
    tagged = tmp_path / "b.txt"
    tagged.write_text(document.text)
    (again,) = read(Source(path=str(tagged), plan="tagged"), _fail)
    assert Encoder.of(tokenizer).encode(again)[0][:-1] == [*tokens[:-1]]
    (plain,) = read(Source(path=str(tagged)), _fail)
    assert not set(Encoder.of(tokenizer).encode(plain)[0]) & {tags.topic, tags.span, tags.sync}


def _fail(message: str) -> None:
    raise AssertionError(message)


def test_what_cannot_be_planned_is_said(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one <async>\n")
    for plan in ("rules", "tagged"):
        with pytest.raises(UserError, match=r"a\.txt document 1: .* on_error = 'skip'"):
            list(read(Source(path=str(file), plan=plan), _fail))  # type: ignore[arg-type]
    problems: list[str] = []
    assert not list(read(Source(path=str(file), plan="rules", on_error="skip"), problems.append))
    assert len(problems) == 1
    with pytest.raises(UserError, match="a chat has no plans"):
        Source(path=str(file), format="chat", plan="rules")
    plain = train_tokenizer(CORPUS, tmp_path / "plain", size=300)
    assert plain.plan_tokens is None
    with pytest.raises(UserError, match="planned texts need the control tokens <topic>"):
        Encoder.of(plain).encode(Document(text="a", planned=True))


def test_digits_are_what_spells_numbers(tokenizer: Tokenizer) -> None:
    tags = tokenizer.plan_tokens
    assert tags is not None
    (seven,) = tokenizer.encode("7", add_special=False)
    assert tags.digits[seven] == "7"
    assert all(set(text) <= set("0123456789 ") for text in tags.digits.values())
    assert {"0", "9", " "} <= set(tags.digits.values())
