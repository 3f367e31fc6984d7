"""The page in a real browser, and what its tests do with it."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.generative.reporting.browser import Browser, browser
from tests.serving.webui.scripted import Script, ScriptedServer, scripted


class Page:
    """What a reader does with the page."""

    def __init__(self, chromium: Browser) -> None:
        self.chromium, self.driver = chromium, chromium.driver

    def open(self, url: str, *, width: int = 1280, height: int = 800, dark: bool = False, anew: bool = True) -> None:
        """`anew`: as somebody who was never here."""
        command = self.driver.execute_cdp_cmd
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        command("Emulation.setDeviceMetricsOverride", metrics)
        self.prefer(dark=dark)
        if anew:
            self.driver.get("about:blank")  # first, as a page keeps its conversation when it is left
            command("Storage.clearDataForOrigin", {"origin": url.rstrip("/"), "storageTypes": "all"})
        self.driver.get(url)

    def ready(self) -> None:
        self.wait(lambda: self.run("return document.body.dataset.ready === 'yes'"))

    def prefer(self, *, dark: bool = False, less_motion: bool = False) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        motion = {"name": "prefers-reduced-motion", "value": "reduce" if less_motion else "no-preference"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme, motion]})

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def wait(self, condition: Callable[[], Any], seconds: float = 20) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, seconds, poll_frequency=0.02).until(lambda _: condition())

    def keys(self, *keys: str) -> None:
        """To whatever has the focus."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def chord(self, modifier: str, key: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).key_down(modifier).send_keys(key).key_up(modifier).perform()

    def say(self, text: str) -> None:
        """And does not wait for the answer."""
        self.find("#prompt").send_keys(text, "\n")

    def ask(self, text: str) -> str:
        """What is answered, when it is there."""
        before = len(self.all(".message"))
        self.say(text)
        return self.answered(before + 2)

    def answered(self, messages: int = 2) -> str:
        """The last answer, once there are so many messages, and none is being written."""
        there = f"return document.querySelectorAll('.message').length === {messages}"
        self.wait(lambda: self.run(f"{there} && !document.querySelector('[data-state=writing]')"))
        self.wait(lambda: not self.run("return document.querySelector('.message:last-child .tail').textContent"))
        return str(self.all(".message.assistant .body")[-1].text)

    def click(self, text: str, within: str = "body") -> None:
        """A button by its words."""
        buttons = [each for each in self.all(f"{within} button") if each.is_displayed() and each.text == text]
        assert buttons, f"no button {text!r}"
        buttons[-1].click()

    def too_wide(self) -> list[str]:
        """What reaches beyond the window's right edge, and is not inside something that scrolls by itself."""
        script = """
        const wide = document.documentElement.clientWidth;
        const inside = (node) => node.closest('.scroll, pre, .hidden, .skip');
        const beyond = [...document.querySelectorAll('body *')].filter((node) => {
          const box = node.getBoundingClientRect();
          return box.width && box.right > wide + 0.5 && !inside(node);
        });
        const places = [...document.querySelectorAll('html, .scroller, .view, .parameters, .sheet, .body')];
        const scrolling = places.filter((node) => node.scrollWidth > node.clientWidth + 1);
        return [...scrolling, ...beyond].map((node) => node.outerHTML.slice(0, 120));
        """
        return list(self.run(script))

    def shoot(self, name: str) -> None:
        """A picture of the window, in $FLATLM_ARTIFACTS."""
        self.driver.save_screenshot(str(self.chromium.artifacts / f"{name}.png"))

    def requests(self) -> list[str]:
        """The addresses that the browser asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="package")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("screenshots")) as opened:
        yield opened


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    chromium.complaints()
    used = Page(chromium)
    used.requests()
    yield used
    used.driver.get("about:blank")


@pytest.fixture(scope="package")
def _scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedServer]:
    file = tmp_path_factory.mktemp("scripted") / "model_q8.tflite"
    file.write_bytes(bytes(123456))
    with scripted(file) as server:
        yield server


@pytest.fixture
def script(_scripted: ScriptedServer) -> Script:
    """As if nothing had been asked of it."""
    vars(_scripted.script).update(vars(replace(Script())))
    return _scripted.script


@pytest.fixture
def scripted_page(page: Page, _scripted: ScriptedServer, script: Script) -> Page:
    """Opened, and ready."""
    page.open(_scripted.url)
    page.ready()
    return page


@pytest.fixture
def empty_file(tmp_path: Path) -> Path:
    (tmp_path / "empty.tflite").write_bytes(b"")
    return tmp_path / "empty.tflite"
