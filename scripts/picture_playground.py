"""Take the pictures of the playground that docs show: `python scripts/picture_playground.py`.

Needs chromium, playwright (`pip install 'anyorder[browser,serve]'`) and the default model. Greedy
or seeded, so that the texts in them are the same every time.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.servers import ServerProcess, free_port  # noqa: E402

DOCS = ROOT / "docs"
CANVAS, CHAT = "austen-masked-diffusion", "smollm2-135m-instruct"
WAIT = 300_000
"""Milliseconds; for busy machines."""


def server(model: str) -> ServerProcess:
    """`anyorder serve MODEL` until the block ends."""
    port = free_port()
    program = [sys.executable, "-m", "anyorder.cli.main", "serve", model]
    return ServerProcess([*program, "--port", str(port)], port)


def opened(browser: Any, port: int, *, width: int, height: int, **options: Any) -> Page:
    """A fresh page at the playground."""
    size = {"width": width, "height": height}
    page: Page = browser.new_context(viewport=size, **options).new_page()
    page.set_default_timeout(WAIT)
    page.goto(f"http://127.0.0.1:{port}/")
    expect(page.locator("#model option")).to_have_count(1)
    return page


def run(page: Page, view: str) -> None:
    """Press the view's main button and wait for the end."""
    button = page.locator(f"#{view} button.main")
    button.click()
    expect(button).to_be_enabled(timeout=WAIT)


def canvas(browser: Any) -> None:
    """In light: tokens in the order in which they were committed, two thirds through."""
    with server(CANVAS) as one:
        page = opened(browser, one.port, width=1000, height=760, color_scheme="light")
        page.click("#tab-canvas")
        page.locator("#canvas select[name=method]").select_option("masked_diffusion")
        page.locator("#canvas textarea").fill("She was")
        page.get_by_label("as a chat message").first.uncheck()
        for name, value in (("max_tokens", "64"), ("temperature", "0.7"), ("seed", "3")):
            page.locator(f"#canvas input[name={name}]").fill(value)
        run(page, "canvas")
        slider = page.locator("#canvas input[type=range]")
        slider.fill(str(int(slider.get_attribute("max") or 0) * 2 // 3))
        page.locator("#canvas .legend select").select_option("order")
        page.locator("#canvas .token.final").nth(3).click()
        page.screenshot(path=DOCS / "playground.png", full_page=True)


def compare(browser: Any, port: int) -> None:
    """In the dark: four methods on one prompt, in the middle of their work."""
    page = opened(browser, port, width=1210, height=760, color_scheme="dark")
    page.click("#tab-compare")
    for _ in range(2):
        page.get_by_role("button", name="Add a method").click()
    page.locator("#compare textarea").fill("The sea, the sea, the sea, the sea,")
    page.get_by_label("as a chat message").last.uncheck()
    for field in page.locator("#compare input[name=max_tokens]").all():
        field.fill("24")
    run(page, "compare")
    page.locator("#compare input[type=range]").fill("6")
    page.locator("#compare-out").screenshot(path=DOCS / "playground-dark.png")


def chat(browser: Any, port: int) -> None:
    """On a phone: a chat with a second answer as a branch."""
    phone = {"device_scale_factor": 1.5, "is_mobile": True, "has_touch": True}
    page = opened(browser, port, width=390, height=760, color_scheme="light", **phone)
    header = page.locator(".turn.assistant header")

    def settle(**fields: str) -> None:
        page.evaluate("document.querySelector('#chat details').open = true")
        for name, value in fields.items():
            page.locator(f"#chat-settings input[name={name}]").fill(value)
        page.evaluate("document.querySelector('#chat details').open = false")

    settle(max_tokens="48", temperature="0")
    page.fill("#message", "Name three colors of the sea.")
    page.tap("#send")
    expect(header).to_contain_text("passes", timeout=WAIT)
    settle(temperature="0.7", seed="1")
    page.tap("#regenerate")
    expect(header).to_contain_text("2/2")
    expect(header).to_contain_text("passes", timeout=WAIT)
    page.screenshot(path=DOCS / "playground-phone.png")


def main() -> int:
    """Take them all."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("chromium is needed: apt-get install chromium", file=sys.stderr)
        return 1
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        canvas(browser)
        with server(CHAT) as one:
            compare(browser, one.port)
            chat(browser, one.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
