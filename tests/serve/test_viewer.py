"""The viewer page in a real, headless Chromium: what is on the canvas, what the buttons do, what survives what."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from longvid.serve.access import Access
from longvid.serve.server import LocalServer

from .conftest import FakeStudio, Served, colour_of

pytestmark = pytest.mark.browser
Serving = Callable[..., Served]
TOKEN = "a-token-of-some-length"


class Page:
    """The viewer in a browser."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        driver.get(url)
        self.wait(lambda: self.js("return document.querySelectorAll('#method option').length") > 0)

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], Any], seconds: float = 40.0) -> Any:
        end = time.monotonic() + seconds
        while True:
            if value := condition():
                return value
            assert time.monotonic() < end, (self.text("veil"), self.text("trouble"), self.state, self.log())
            time.sleep(0.05)

    def log(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def text(self, name: str) -> str:
        return self.js("return document.getElementById(arguments[0]).textContent", name)

    def click(self, name: str) -> None:
        self.driver.find_element("id", name).click()

    def write(self, name: str, text: str) -> None:
        element = self.driver.find_element("id", name)
        element.clear()
        element.send_keys(text)

    @property
    def state(self) -> str:
        return self.js("return document.getElementById('stage').dataset.state")

    @property
    def line(self) -> str:
        return self.js("return document.getElementById('line').dataset.state")

    @property
    def frame(self) -> int:
        return int(self.js("return document.getElementById('stage').dataset.frame ?? -1"))

    @property
    def colour(self) -> list[int]:
        """The pixel in the middle of the canvas."""
        return self.js(
            "const c = document.getElementById('video');"
            "return [...c.getContext('2d').getImageData(c.width / 2, c.height / 2, 1, 1).data].slice(0, 3)"
        )

    def shows(self, prompt: str, seed: int) -> bool:
        return bool(np.abs(np.subtract(self.colour[:2], colour_of(prompt, seed))).max() <= 8)

    def start(self, prompt: str = "a", seed: int = 1, **fields: str) -> None:
        self.write("prompt", prompt)
        self.write("seed", str(seed))
        for name, value in fields.items():
            if name in ("method", "format"):
                self.js("document.getElementById(arguments[0]).value = arguments[1]", name, value)
            else:
                self.write(name, value)
        self.click("go")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    selenium = pytest.importorskip("selenium.webdriver")
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if browser is None or chromedriver is None:
        pytest.skip("no Chromium with chromedriver on this machine")
    options = selenium.ChromeOptions()
    options.binary_location = browser
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
        "--disable-features=OptimizationHints,MediaRouter,Translate", f"--user-data-dir={profile}",
        "--window-size=1280,900",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    downloads = tmp_path_factory.mktemp("downloads")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    service = selenium.ChromeService(executable_path=chromedriver)
    chrome = selenium.Chrome(options=options, service=service)
    chrome.downloads = downloads
    yield chrome
    chrome.quit()


@pytest.fixture
def studio() -> FakeStudio:
    return FakeStudio(block_seconds=0.02)


@pytest.fixture
def page(driver: Any, serving: Serving, studio: FakeStudio) -> Iterator[Page]:
    driver.get_log("browser")  # of the test before
    served = serving(studio, grace=20.0)
    page = Page(driver, served.url)
    page.served = served  # type: ignore[attr-defined]
    yield page
    # A broken line is a test's own doing, reading the canvas back often, too.
    complaints = [entry for entry in page.log() if "WebSocket" not in entry and "getImageData" not in entry]
    assert not complaints, complaints  # a broken content policy or script would be here
    driver.get("about:blank")


def test_frames_arrive_and_change(page: Page) -> None:
    assert page.text("model") == "fake, 32x32"
    page.start("a", 1)
    first = page.wait(lambda: page.frame >= 0 and page.frame + 1)
    assert page.shows("a", 1)
    before = page.colour[2]
    page.wait(lambda: page.frame > first + 10)
    assert page.shows("a", 1)
    assert page.colour[2] != before  # the frame counter's channel
    page.wait(lambda: all(page.text(name)[0].isdigit() for name in ("fps", "made", "latency", "first", "block")))
    assert float(page.text("fps").split()[0]) > 4
    page.wait(lambda: "3 of 4 frames: 1 sink, 2 recent" in page.text("cachetext"))
    assert page.js("return document.querySelectorAll('.spark').length") >= 4


@pytest.mark.parametrize("kind", ["webp", "h264"])
def test_other_formats(page: Page, kind: str) -> None:
    page.start("a", 1, format=kind)
    page.wait(lambda: page.frame > 12)
    assert page.shows("a", 1)
    assert page.served.engine.sessions[0].kind == kind  # type: ignore[attr-defined]


def test_a_prompt_switch_is_acknowledged_and_visible(page: Page) -> None:
    page.start("a", 1)
    page.wait(lambda: page.frame > 8)
    page.write("prompt", "b")
    page.click("go")
    sent = page.wait(lambda: page.js("return document.getElementById('ask').dataset.lastEvent"))
    page.wait(lambda: page.js("return document.getElementById('ask').dataset.lastAck") == sent)
    page.wait(lambda: page.shows("b", 1))
    assert page.text("caption") == "b"
    assert page.js("return [...document.querySelectorAll('#prompts li')].map((li) => li.lastChild.data)") == ["a", "b"]


def test_a_cut_skips_what_waits_in_the_buffer(page: Page) -> None:
    page.start("a", 1)
    page.wait(lambda: page.frame > 8)
    page.click("cut")
    page.write("prompt", "c")
    page.click("go")
    page.wait(lambda: page.shows("c", 1))
    assert page.text("trouble") == "cut"  # the fake model's notice that it was told so


def test_pause_by_keyboard_stops_the_model_and_goes_on(page: Page, studio: FakeStudio) -> None:
    page.start("a", 1)
    page.wait(lambda: page.frame > 8)
    page.js("document.activeElement.blur()")
    body = page.driver.find_element("css selector", "body")
    body.send_keys(" ")
    page.wait(lambda: page.state == "paused")
    frame, blocks = page.frame, len(studio.log)
    time.sleep(0.8)
    assert (page.frame, len(studio.log)) == (frame, blocks)
    assert page.text("veil") == "Paused."
    body.send_keys(" ")
    page.wait(lambda: page.frame > frame + 8)
    body.send_keys("/")
    assert page.js("return document.activeElement.id") == "prompt"


def test_stop_and_start_again(page: Page, studio: FakeStudio) -> None:
    page.start("a", 1)
    page.wait(lambda: page.frame > 8)
    page.click("stop")
    page.wait(lambda: page.state == "ended" and page.text("veil") == "The end.")
    page.wait(lambda: studio.open_takes == 0)
    page.start("b", 2, seconds="1")
    page.wait(lambda: page.frame == 15 and page.state == "ended")
    assert page.shows("b", 2)
    assert page.text("caption") == "b"
    assert page.js("return [...document.querySelectorAll('#prompts li')].map((li) => li.lastChild.data)") == ["b"]


def test_reload_resumes(page: Page) -> None:
    page.start("a", 1)
    page.wait(lambda: page.frame > 20)
    page.write("prompt", "b")
    page.click("go")
    page.wait(lambda: page.shows("b", 1))
    seen = page.frame
    page.driver.refresh()
    page.wait(lambda: page.frame >= 0)
    assert page.frame >= seen - 1
    page.wait(lambda: page.frame > seen + 8)
    assert page.shows("b", 1)
    assert page.served.engine.telemetry.started == 1  # type: ignore[attr-defined]
    assert page.served.engine.telemetry.resumed == 1  # type: ignore[attr-defined]
    assert page.text("caption") == "b"
    assert page.js("return document.getElementById('prompt').value") == "b"


def test_a_paused_video_is_still_there_after_a_reload(page: Page) -> None:
    page.start("a", 1)
    page.wait(lambda: page.frame > 8)
    page.click("pause")
    page.wait(lambda: page.state == "paused")
    page.driver.refresh()
    page.wait(lambda: page.state == "paused" and page.frame >= 0)
    assert page.shows("a", 1)
    page.click("pause")
    page.wait(lambda: page.frame > 16)


def test_an_error_of_the_model_is_told(page: Page, studio: FakeStudio) -> None:
    studio.broken = {"bad": (3, RuntimeError("boom"))}
    page.start("bad", 1)
    page.wait(lambda: page.state == "ended")
    assert page.text("trouble") == "generation failed (RuntimeError)"
    assert page.js("return document.getElementById('trouble').getBoundingClientRect().bottom <= innerHeight")
    page.start("good", 1)
    page.wait(lambda: page.shows("good", 1))


def test_a_busy_server_is_tried_again(driver: Any, serving: Serving) -> None:
    served = serving(FakeStudio(), max_sessions=1)
    other = served.client()
    other.start("other")
    page = Page(driver, served.url)
    page.start("mine", 1)
    page.wait(lambda: "All places are taken" in page.text("trouble"))
    other.send("event", event_id="s", kind="stop")
    other.until("done")
    page.wait(lambda: page.shows("mine", 1))
    assert page.text("trouble") == ""


def test_what_was_seen_can_be_downloaded(page: Page) -> None:
    page.start("a", 1)
    page.wait(lambda: page.frame > 32)
    page.click("save")
    folder: Path = page.driver.downloads
    file = page.wait(lambda: next((p for p in folder.iterdir() if p.suffix in (".webm", ".mp4")), None))
    page.wait(lambda: file.stat().st_size > 0)
    with av.open(str(file)) as film:
        shown = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(shown) > 10
    assert np.abs(shown[-1].mean((0, 1))[:2] - colour_of("a", 1)).max() < 20


def test_the_token_in_the_address_is_enough(driver: Any, serving: Serving) -> None:
    served = serving(access=Access("127.0.0.1", TOKEN))
    page = Page(driver, f"{served.url}?token={TOKEN}")
    assert driver.current_url == served.url
    page.start("a", 1)
    page.wait(lambda: page.frame > 4)


def test_a_server_restart_is_survived(driver: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with LocalServer(FakeStudio(), port=port) as server:
        page = Page(driver, server.url)
        page.start("a", 1)
        page.wait(lambda: page.frame > 16)
    page.wait(lambda: page.line in ("waiting", "connecting"))
    time.sleep(1.0)
    again = FakeStudio()
    with LocalServer(again, port=port):
        page.wait(lambda: page.line == "open" and again.log)
        page.wait(lambda: "restarted" in page.text("trouble"))
        page.wait(lambda: page.frame > 4 and page.shows("a", 1))  # the same prompt and seed
        assert again.log[0][:2] == ("a", 0)  # from the beginning
        driver.get("about:blank")


def test_a_server_that_comes_back_with_another_token_says_so(driver: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with LocalServer(FakeStudio(), access=Access("127.0.0.1", TOKEN), port=port) as server:
        page = Page(driver, f"{server.url}?token={TOKEN}")
        page.start("a", 1)
        page.wait(lambda: page.frame > 4)
    with LocalServer(FakeStudio(), access=Access("127.0.0.1", f"another-{TOKEN}"), port=port):
        page.wait(lambda: "another token" in page.text("trouble"))
        driver.get("about:blank")


def test_a_broken_line_is_mended_without_losing_a_frame(page: Page) -> None:
    page.start("a", 1)
    page.wait(lambda: page.frame > 12)
    session = page.served.engine.sessions[0]  # type: ignore[attr-defined]
    loop_socket = session.viewer._socket
    transport = loop_socket._receive.__self__.transport
    transport._loop.call_soon_threadsafe(transport.abort)
    page.wait(lambda: page.served.engine.telemetry.resumed == 1)  # type: ignore[attr-defined]
    seen = page.frame
    page.wait(lambda: page.frame > seen + 12)
    assert page.js("return document.getElementById('stage').dataset.lost") == "0"
    assert page.served.engine.telemetry.started == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(("width", "height"), [(360, 740), (768, 1024), (1280, 900)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_reads(page: Page, width: int, height: int, scheme: str) -> None:
    driver = page.driver
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
    )
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    try:
        page.start("a", 1)
        page.wait(lambda: page.frame > 4)
        assert page.js("return document.documentElement.scrollWidth") <= width
        small = page.js(
            "return [...document.querySelectorAll('button, input:not([type=checkbox]), select')]"
            ".filter((e) => e.getBoundingClientRect().height < 40).map((e) => e.id)"
        )
        assert not small
        assert min(contrasts(page).values()) >= 4.5, contrasts(page)
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def contrasts(page: Page) -> dict[str, float]:
    """WCAG contrast of text against what is behind it, by element."""
    pairs = page.js(
        """
        const behind = (element) => {
          for (; element; element = element.parentElement) {
            const colour = getComputedStyle(element).backgroundColor;
            if (!colour.endsWith(", 0)")) return colour;
          }
          return "rgb(255, 255, 255)";
        };
        const all = "h1, #model, #line b, dt, dd, label, legend, button:not(:disabled), #caption, figcaption,"
          + " #cachetext, .keys, #prompts li, #summary, .spark span, .spark output";
        return [...document.querySelectorAll(all)]
          .filter((element) => element.textContent.trim())
          .map((element) => [element.tagName + "#" + element.id, getComputedStyle(element).color, behind(element)]);
        """
    )

    def luminance(colour: str) -> float:
        levels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    found = {}
    for name, ink, paper in pairs:
        low, high = sorted((luminance(ink), luminance(paper)))
        found[name] = (high + 0.05) / (low + 0.05)
    return found
