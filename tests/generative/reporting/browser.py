"""A real browser that looks at a page: Chromium without a window."""

import base64
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Browser:
    driver: Any
    artifacts: Path

    def look(self, url: str, *, width: int, dark: bool = False, name: str) -> Path:
        """Opens an address at that width; the screenshot of all of the page."""
        command = self.driver.execute_cdp_cmd
        command("Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600})
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        command("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(url)
        size = command("Page.getLayoutMetrics", {})["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": width, "height": min(size["height"], 15000), "scale": 1}
        picture = command("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        path = self.artifacts / f"{name}.png"
        path.write_bytes(base64.b64decode(picture["data"]))
        return path

    def complaints(self) -> list[str]:
        """Of the console, since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@contextmanager
def browser(artifacts: Path) -> Iterator[Browser]:
    """Skips where Chromium, its driver or selenium is missing. Screenshots go to $FLATLM_ARTIFACTS, where set."""
    selenium = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    from selenium.webdriver.chrome.service import Service

    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver: Debian's packages chromium and chromium-driver")
    artifacts = Path(os.environ.get("FLATLM_ARTIFACTS", artifacts))
    artifacts.mkdir(parents=True, exist_ok=True)
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = selenium.Chrome(options=options, service=Service(driver, log_output=subprocess.DEVNULL))
    try:
        yield Browser(opened, artifacts)
    finally:
        opened.quit()
