"""Pictures of traces: well-formed, complete, and safe whatever a model writes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from anyorder.core.request import Choice, Completion, Preview, Report, TraceEntry
from anyorder.evaluation.pictures import WIDTH, trace_svg
from anyorder.evaluation.replay import replay_html
from anyorder.evaluation.svg import cells, clean, probability_color, shorten

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SVG = "{http://www.w3.org/2000/svg}"
NASTY = "</text><script>alert(1)</script>&\"'<b onload=x>]]>\x00\x1b\ud800\u202e"


def completion(*traces: list[tuple[str, int, float]], **changes: Any) -> Completion:
    """Choices of (text, step, probability) tokens."""
    choices = []
    for trace in traces:
        entries = tuple(
            TraceEntry(token=7, text=text, step=step, probability=probability)
            for text, step, probability in trace
        )
        choices.append(
            Choice(
                text="",
                tokens=[7] * len(trace),
                logprobs=[0.0] * len(trace),
                finish_reason="stop",
                trace=entries,
            )
        )
    report = {
        "num_prompt_tokens": 3,
        "num_new_tokens": 4,
        "num_forward_passes": 2,
        "tokens_per_pass": 2.0,
        "num_cached_tokens": 1,
        "queue_seconds": 0.0,
        "prefill_seconds": 0.5,
        "decode_seconds": 1.5,
    }
    return Completion(
        choices=tuple(choices),
        method="some_method",
        report=Report(**{**report, **changes}),
        prompt_tokens=[1, 2, 3],
    )


def draw(answer: Completion, prompt: str = "Once") -> ElementTree.Element:
    """The picture as a tree; fails unless it is well-formed."""
    return ElementTree.fromstring(trace_svg(answer, model="some-model", prompt=prompt))


def texts(picture: ElementTree.Element) -> list[str]:
    """What is written, spaces plain again."""
    return [(node.text or "").replace("\xa0", " ") for node in picture.iter(f"{SVG}text")]


def test_tokens_stand_in_reading_order_with_their_passes() -> None:
    """A method that fills from the right still reads from the left."""
    words = [(" upon", 3, 0.9), (" a", 2, 0.5), (" time", 1, 0.1)]
    written = texts(draw(completion(words)))
    start = written.index("Once")
    assert written[start : start + 7] == ["Once", " upon", "3", " a", "2", " time", "1"]
    for part in ("some_method on some-model", "3 (1 cached)", "2.00", "2.0", "exact"):
        assert part in written


def test_position_and_pass_are_plotted() -> None:
    picture = draw(completion([("a", 2, 0.5), ("b", 1, 0.5), ("c", 2, 0.5)]))
    dots = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in picture.iter(f"{SVG}circle")]
    assert dots[0][0] < dots[1][0] < dots[2][0]
    assert dots[1][1] < dots[0][1] == dots[2][1]


def test_several_choices_and_speculation_are_told() -> None:
    answer = completion([("a", 1, 0.5)], [("b", 1, 0.5)], mean_accepted_length=2.5, exact=False)
    written = texts(draw(answer))
    assert "choice 1   stop" in written and "choice 2   stop" in written
    assert "2.50" in written and "approximate" in written


def test_the_bar_under_a_token_is_its_probability() -> None:
    groups = [g for g in draw(completion([("word", 1, 0.25)])).iter(f"{SVG}g")]
    box, bar = groups[0].findall(f"{SVG}rect")
    assert float(bar.get("width", "")) == pytest.approx(float(box.get("width", "")) / 4, abs=0.1)
    assert bar.get("fill") == probability_color(0.25)


def test_colors_run_from_end_to_end() -> None:
    assert len({probability_color(p / 10) for p in range(11)}) == 11
    assert probability_color(-1) == probability_color(0) != probability_color(2)


def test_long_texts_wrap_inside_the_page() -> None:
    words = [(f" word{number}", number, 0.5) for number in range(1, 200)]
    words += [("x" * 500, 200, 0.5), ("\\n\\n", 201, 0.5), ("漢字" * 30, 202, 1.0), ("", 203, 0)]
    picture = draw(completion(words), prompt="prompt " * 200 + "y" * 300)
    boxes = [rect for group in picture.iter(f"{SVG}g") for rect in group.findall(f"{SVG}rect")]
    assert max(float(b.get("x", "")) + float(b.get("width", "")) for b in boxes) <= WIDTH
    height = float(picture.get("height", ""))
    assert max(float(t.get("y", "")) for t in picture.iter(f"{SVG}text")) < height
    assert "↵↵" in texts(picture)


def test_dark_and_light() -> None:
    assert "prefers-color-scheme:dark" in trace_svg(
        completion([("a", 1, 1.0)]), model="m", prompt=""
    )


class Tags(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_nothing_a_model_writes_becomes_markup() -> None:
    answer = completion([(NASTY, 1, 0.5)])
    for page in (
        trace_svg(answer, model=NASTY, prompt=NASTY),
        replay_html([answer], models=[NASTY], prompt=NASTY),
    ):
        page.encode("utf-8")
        tags = Tags()
        tags.feed(page)
        names = [name for name, _ in tags.found]
        assert "b" not in names and names.count("script") == page.count("<script>") <= 1
        handlers = [key for _, found in tags.found for key in found if key.startswith("on")]
        assert not handlers
    ElementTree.fromstring(trace_svg(answer, model=NASTY, prompt=NASTY))


def test_the_page_loads_nothing_from_elsewhere() -> None:
    page = replay_html(
        [completion([("a", 1, 0.5), ("b", 5, 0.5)]), completion([("a", 3, 0.5)])],
        models=["m", "n"],
        prompt="LAST PICTURE",
    )
    assert "default-src 'none'" in page and "http" not in page.replace("http-equiv", "").replace(
        "http://www.w3.org/2000/svg", ""
    )
    assert 'max="5" value="5"' in page and "LAST\xa0PICTURE" not in page.split("<svg")[0]


def test_clean_cells_shorten() -> None:
    assert clean("a\x00\nb") == "a\ufffd\ufffdb"
    assert [cells("ab"), cells("漢"), cells("e\u0301")] == [2, 2, 1]
    assert [shorten(text, 4) for text in ("abcdef", "abcd", "漢字漢")] == ["abc…", "abcd", "漢…"]


def test_boards_tell_what_stood_before() -> None:
    """A token that came later, one that was replaced, one that was taken out, and a fixed one."""
    words = [("a", 0, 1.0), ("b\\n", 3, 0.5), ("c", 1, 0.5)]
    answer = completion(words)
    history = tuple(
        Preview(step=step, place=place, token=token, text=text)
        for step, place, token, text in [(1, 1, 7, "x"), (1, 3, 7, "</p>"), (2, 3, None, "")]
    )
    choice = dataclasses.replace(answer.choices[0], history=history)
    page = replay_html([dataclasses.replace(answer, choices=(choice,))], models=["m"], prompt="p")
    data = json.loads(page.partition("const boards = ")[2].partition(";\n")[0])
    assert data == [
        {
            "final": [
                ["a", 0, "", 0],
                ["b\n", 3, probability_color(1.0), 3],
                ["c", 1, probability_color(0.0), 1],
            ],
            "history": [[1, 1, "x"], [1, 3, "</p>"], [2, 3, None]],
        }
    ]
    assert "</p>" not in page.partition("const boards = ")[2].partition(";\n")[0]
    colours = [probability_color(1.0), probability_color(0.0)]
    lines = page.partition('<p class="board" data-board="0">')[2].partition("</p>")[0]
    assert [part.partition('"')[0] for part in lines.split("color:")[1:]] == ["inherit", *colours]


def test_boards_of_every_choice_are_found_by_their_number() -> None:
    answers = [completion([("a", 1, 0.5)], [("b", 1, 0.5)]), completion([("PICTURES", 1, 0.5)])]
    page = replay_html(answers, models=["m", "n"], prompt="")
    numbers = [
        attributes["data-board"] for _, attributes in tags(page) if "data-board" in attributes
    ]
    assert numbers == ["0", "1", "2"]
    data = json.loads(page.partition("const boards = ")[2].partition(";\n")[0])
    assert [board["final"][0][0] for board in data] == ["a", "b", "PICTURES"]


def tags(page: str) -> list[tuple[str, dict[str, str | None]]]:
    found = Tags()
    found.feed(page)
    return found.found


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium; `apt-get install chromium`")
def test_boards_in_a_browser() -> None:
    """Pass by pass, as the slider has it."""
    sync_api = pytest.importorskip("playwright.sync_api")
    answer = completion([("a", 1, 0.5), ("b", 3, 0.5)])
    history = tuple(
        Preview(step=step, place=place, token=token, text=text)
        for step, place, token, text in [(1, 1, 7, "x"), (1, 2, 7, "y"), (2, 2, None, "")]
    )
    choice = dataclasses.replace(answer.choices[0], history=history)
    page_text = replay_html(
        [dataclasses.replace(answer, choices=(choice,))], models=["m"], prompt="p"
    )
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_content(page_text)
        shown = []
        for number in range(4):
            page.evaluate(
                "n => { const s = document.getElementById('pass'); s.value = n;"
                " s.dispatchEvent(new Event('input')); }",
                number,
            )
            shown.append(page.inner_text("p.board"))
        browser.close()
    assert shown == ["▁▁", "axy", "ax", "ab"]
