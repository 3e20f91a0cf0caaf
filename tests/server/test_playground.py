"""The playground in a real browser, against a live server: `pytest -m browser`.

Debian's chromium, driven by Playwright; accessibility is judged by axe.
"""

from __future__ import annotations

import json
import shutil
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.server.conftest import Live, running

from anyorder.model.loaded import LoadedModel

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium; `apt-get install chromium`"),
]
WAIT = 60_000
"""Milliseconds; for busy machines."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Page:
    """A fresh page at the playground, which may neither fail nor ask anybody else."""

    def __init__(self, browser: Any, url: str, **context: Any) -> None:
        self.problems: list[str] = []
        self.asked: list[Any] = []
        self.context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 900}, **context}
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request))
        self.url = url
        self.page.goto(url)

    def bodies(self, path: str) -> list[dict[str, Any]]:
        """What the page sent there."""
        sent = [r.post_data for r in self.asked if r.url.endswith(path)]
        return [json.loads(body) for body in sent if body]

    def download(self, selector: str, folder: Path) -> Path:
        """What a click saves."""
        with self.page.expect_download() as waiting:
            self.page.locator(selector).first.click()
        file = folder / waiting.value.suggested_filename
        waiting.value.save_as(file)
        return file

    def close(self) -> None:
        """Nothing went wrong, and nobody else was asked."""
        self.context.close()
        assert self.problems == []
        own = (self.url, "blob:", "data:")
        assert [r.url for r in self.asked if not r.url.startswith(own)] == []


@pytest.fixture
def at(browser: Any, live: Live) -> Iterator[Page]:
    page = Page(browser, live.url)
    expect(page.page.locator("#model option")).to_have_count(1)
    yield page
    page.close()


def say(at: Page, text: str, max_tokens: int = 12) -> None:
    page = at.page
    if not page.locator("#chat-settings").is_visible():
        page.click("#chat summary")
    page.fill("#chat-settings input[name=max_tokens]", str(max_tokens))
    page.fill("#message", text)
    page.press("#message", "Control+Enter")


def run(at: Page, view: str, **fields: object) -> None:
    """Run what the Canvas or Compare view is set to."""
    page = at.page
    for name, value in fields.items():
        for field in page.locator(f"#{view} input[name={name}]").all():
            field.fill(str(value))
    page.click(f"#{view} button.main")
    expect(page.locator(f"#{view} button.main")).to_be_enabled(timeout=WAIT)


def tokens(at: Page, view: str, state: str = "final", board: int = 0) -> list[str]:
    found = at.page.locator(f"#{view} .board").nth(board).locator(f".token.{state}")
    return [str(text) for text in found.all_text_contents()]


def test_a_chat_streams_and_branches(at: Page, tmp_path: Path) -> None:
    page = at.page
    say(at, "the sea")
    answer = page.locator(".turn.assistant")
    expect(answer.locator("header")).to_contain_text("12 tokens")
    first = answer.locator(".body").inner_text()
    assert first

    page.click("#regenerate")
    expect(answer.locator("header")).to_contain_text("2/2")
    expect(answer.locator("header")).to_contain_text("12 tokens")
    page.get_by_role("button", name="previous branch").click()
    expect(answer.locator("header")).to_contain_text("1/2")

    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Edited message").fill("the ship")
    page.get_by_role("button", name="Send as a branch").click()
    expect(page.locator(".turn.user .body")).to_have_text("the ship")
    expect(answer.locator("header")).to_contain_text("12 tokens")
    asked = [body["messages"] for body in at.bodies("chat/completions")]
    sea, ship = ([{"role": "user", "content": f"the {noun}"}] for noun in ("sea", "ship"))
    assert asked == [sea, sea, ship]

    saved = json.loads(at.download("#export-json", tmp_path).read_text())
    assert [node["content"] for node in saved["children"]] == ["the sea", "the ship"]
    assert [len(node["children"]) for node in saved["children"]] == [2, 1]
    assert saved["children"][0]["children"][0]["content"] == first
    assert "the ship" in at.download("#export-text", tmp_path).read_text()

    page.reload()  # the conversation is kept
    expect(page.locator(".turn.user .body")).to_have_text("the ship")
    page.click("#new-chat")
    expect(page.locator(".turn")).to_have_count(0)


def test_another_answer_is_another_text(at: Page) -> None:
    """In a chat a seed is sent if one was chosen, and branches are walked from the keyboard."""
    page = at.page
    say(at, "the sea")
    expect(page.locator(".turn.assistant header")).to_contain_text("12 tokens")
    page.locator("#chat-settings input[name=seed]").fill("0")
    page.click("#regenerate")
    header = page.locator(".turn.assistant header")
    expect(header).to_contain_text("2/2")
    expect(header).to_contain_text("12 tokens")
    first, second = at.bodies("chat/completions")
    assert "seed" not in first and first["temperature"] > 0
    assert second["seed"] == 0
    page.get_by_role("button", name="previous branch").focus()
    page.keyboard.press("Enter")
    expect(header).to_contain_text("1/2")
    page.keyboard.press("Enter")
    expect(header).to_contain_text("2/2")

    page.locator("#chat-settings select[name=method]").select_option("beam_search")
    assert page.locator("#chat-settings input[name=temperature]").input_value() == "0"
    assert page.locator("#chat-settings input[name=max_tokens]").input_value() == "12"


def test_the_keyboard_is_enough(at: Page) -> None:
    """Write, send, change the view, run, walk through passes and tokens, without a pointer."""
    page, keys = at.page, at.page.keyboard

    def focused() -> str:
        return str(page.evaluate("document.activeElement.id || document.activeElement.tagName"))

    def tab_to(wanted: str, most: int = 60) -> None:
        for _ in range(most):
            if page.evaluate(f"document.activeElement.matches({json.dumps(wanted)})"):
                return
            keys.press("Tab")
        raise AssertionError(f"Tab does not lead to {wanted}; it ended at {focused()}")

    tab_to("#message")
    keys.type("the sea")
    keys.press("Control+Enter")
    expect(page.locator(".turn.assistant header")).to_contain_text("passes")
    page.evaluate("document.activeElement.blur()")
    tab_to("#tab-chat")
    keys.press("ArrowRight")
    assert focused() == "tab-canvas"
    tab_to("#canvas input[name=max_tokens]")
    keys.press("Control+A")
    keys.type("8")
    tab_to("#canvas button.main")
    keys.press("Enter")
    expect(page.locator("#canvas output")).to_have_text("pass 8 of 8")
    expect(page.locator("#canvas button.main")).to_be_enabled(timeout=WAIT)
    tab_to("#canvas input[type=range]")
    keys.press("ArrowLeft")
    expect(page.locator("#canvas output")).to_have_text("pass 7 of 8")
    tab_to("#canvas .token")
    keys.press("ArrowRight")
    expect(page.locator("#canvas .detail")).to_contain_text("pass 2, place 2")


def test_whoever_reads_is_not_scrolled_away(
    at: Page, live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, engine = at.page, live.service.engine
    tick = engine.tick

    def slowly() -> bool:
        time.sleep(0.01)
        return tick()

    monkeypatch.setattr(engine, "tick", slowly)
    page.set_viewport_size({"width": 320, "height": 400})
    say(at, "on and on", max_tokens=300)
    live.wait_until(lambda: live.service.worker.is_busy)
    body = page.locator(".turn.assistant .body")

    def height() -> int:
        return int(body.evaluate("element => element.offsetHeight"))

    live.wait_until(lambda: height() > 100, seconds=60)
    assert page.evaluate("scrollY") > 0, "the page follows a reader who stays at the end"
    page.evaluate("scrollTo(0, 0)")
    before = height()
    live.wait_until(lambda: height() > before, seconds=60)
    assert page.evaluate("scrollY") == 0
    page.keyboard.press("Escape")
    expect(page.locator(".turn.assistant header")).to_contain_text("stopped")


def test_a_chat_is_stopped(at: Page, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = live.service.worker
    live.wait_until(lambda: not worker.is_busy)
    tick = worker.engine.tick

    def slowly() -> bool:
        """Else the answer may be there before the keyboard is."""
        time.sleep(0.01)
        return tick()

    monkeypatch.setattr(worker.engine, "tick", slowly)
    say(at, "on and on", max_tokens=220)
    live.wait_until(lambda: worker.is_busy)
    at.page.keyboard.press("Escape")
    expect(at.page.locator(".turn.assistant header")).to_contain_text("stopped")
    live.wait_until(lambda: not worker.is_busy)
    assert live.service.num_in_flight == 0


def test_refusals_are_shown(at: Page) -> None:
    say(at, "too much", max_tokens=10_000_000)
    expect(at.page.locator(".turn .wrong")).to_contain_text("max_tokens")
    at.page.click("#tab-canvas")
    run(at, "canvas", max_tokens=10_000_000)
    expect(at.page.locator("#canvas .board .wrong")).to_contain_text("max_tokens")


def test_a_canvas_is_replayed(at: Page, tmp_path: Path) -> None:
    page = at.page
    page.click("#tab-canvas")
    run(at, "canvas", max_tokens=10)
    assert len(tokens(at, "canvas")) == 10
    page.locator("#canvas input[type=range]").fill("4")
    assert (len(tokens(at, "canvas")), len(tokens(at, "canvas", "open"))) == (4, 6)
    expect(page.locator("#canvas output")).to_have_text("pass 4 of 10")

    first = page.locator("#canvas .token.final").first
    first.focus()
    expect(page.locator("#canvas .detail")).to_contain_text("pass 1, place 1")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#canvas .detail")).to_contain_text("pass 2, place 2")
    sure = first.evaluate("element => element.style.getPropertyValue('--shade')")
    page.locator("#canvas .legend select").select_option("order")
    assert first.evaluate("element => element.style.getPropertyValue('--shade')") != sure

    board = "#canvas .board button:has-text"
    trace = json.loads(at.download(f"{board}('JSON')", tmp_path).read_text())
    assert [event["place"] for event in trace["events"]] == list(range(10))
    assert trace["end"]["usage"]["forward_passes"] == 10
    picture = ET.parse(at.download(f"{board}('SVG')", tmp_path)).getroot()
    drawn = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert drawn[0] == "autoregressive, pass 4 of 10"
    assert at.download(f"{board}('PNG')", tmp_path).read_bytes().startswith(b"\x89PNG")

    page.get_by_role("button", name="Replay").click()
    expect(page.locator("#canvas output")).to_have_text("pass 10 of 10")


def test_methods_side_by_side(at: Page) -> None:
    page = at.page
    page.click("#tab-compare")
    for _ in range(2):
        page.get_by_role("button", name="Add a method").click()
    assert page.get_by_role("button", name="Add a method").is_disabled()
    page.locator("#compare").get_by_role("button", name="Remove").last.click()
    run(at, "compare", max_tokens=16)
    names = page.locator("#compare .board h2").all_text_contents()
    assert names == ["autoregressive", "speculative", "lookahead"]
    plain, *others = (tokens(at, "compare", board=board) for board in range(3))
    assert len(plain) == 16
    assert others == [plain, plain]
    assert page.locator("#compare .board").nth(1).locator("dl").inner_text().count("passes") == 1


def test_options_are_drawn_from_the_schema(at: Page) -> None:
    page = at.page
    page.click("#tab-canvas")
    page.locator("#canvas select[name=method]").select_option("speculative")
    page.locator("#canvas details summary").first.click()
    page.locator("#canvas select[name=drafter]").select_option("suffix_automaton")
    page.locator("#canvas input[name=remember]").fill("5")
    page.locator("#canvas select[name=adaptive]").select_option("false")
    run(at, "canvas", max_tokens=4)
    (sent,) = at.bodies("/v1/canvas")
    assert sent["method"] == "speculative"
    drafter = {"name": "suffix_automaton", "remember": 5}
    assert sent["method_options"] == {"drafter": drafter, "adaptive": False}
    assert len(tokens(at, "canvas")) == 4


def test_a_key_is_asked_for(browser: Any, model: LoadedModel) -> None:
    with running(model, keys=["secret"]) as server:
        page = Page(browser, server.url)
        expect(page.page.locator("#notice")).to_contain_text("key")
        page.page.once("dialog", lambda dialog: dialog.accept("secret"))
        page.page.click("#key")
        expect(page.page.locator("#model option")).to_have_count(1)
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_everybody_can_use_it(browser: Any, live: Live, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    size = {"width": width, "height": 844}
    # axe is put into the page, which the page's own policy forbids.
    at = Page(browser, live.url, color_scheme=scheme, viewport=size, bypass_csp=True)
    page = at.page
    say(at, "the sea")
    expect(page.locator(".turn.assistant header")).to_contain_text("12 tokens")
    for tab in ("chat", "canvas", "compare"):
        page.click(f"#tab-{tab}")
        if tab != "chat":
            run(at, tab, max_tokens=8)
        found = axe.run(page).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in found] == []
        overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert overflow <= 0, f"{tab} is wider than {width} pixels"
    at.close()
