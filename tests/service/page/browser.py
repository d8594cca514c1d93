"""A real Chromium, which the tests of the page drive."""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from axe_core_python.selenium import Axe
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
MISSING = "" if CHROMIUM and DRIVER else "needs Debian's packages chromium and chromium-driver"
QUIET = ("background-networking", "component-update", "sync", "gpu", "quic", "default-apps", "extensions")
PATIENCE = 30.0
"""Seconds for what takes one on a machine that does nothing else."""

T = TypeVar("T")


class Browser:
    """A window with an empty profile."""

    def __init__(self, driver: WebDriver) -> None:
        self.driver = driver

    def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False, **stored: str) -> None:
        """Load the page anew. `stored` are what it keeps in localStorage: language, theme."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.colours(dark=dark)
        # Another address than before the #, or else nothing would be loaded.
        self.driver.get("about:blank")
        named = {f"headlight.{name}": value for name, value in stored.items()}
        source = f"localStorage.clear(); Object.assign(localStorage, {json.dumps(named)})"
        script = self.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": source})
        self.driver.get(url)
        self.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)

    def colours(self, *, dark: bool) -> None:
        """Let the system ask for colours, which the page follows unless it was told otherwise."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def numbers(self, selector: str) -> list[float]:
        """The numbers that stand behind figures; NaN where there is none."""
        script = "return [...document.querySelectorAll(arguments[0])].map(each => Number(each.dataset.value ?? NaN))"
        found: list[float | None] = self.run(script, selector)
        return [math.nan if number is None else number for number in found]

    def texts(self, selector: str) -> list[str]:
        """The texts of elements as they are shown."""
        found: list[str] = self.run(
            "return [...document.querySelectorAll(arguments[0])].map(each => each.innerText.trim())", selector
        )
        return found

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.until(lambda: self.all(selector))[0]

    def button(self, text: str) -> WebElement:
        def found() -> list[WebElement]:
            return [button for button in self.all("button") if button.text == text and button.is_displayed()]

        return self.until(found)[0]

    def until(self, condition: Callable[[], T]) -> T:
        deadline = time.monotonic() + PATIENCE
        while not (result := condition()):
            assert time.monotonic() < deadline, f"waited in vain; the page says: {self.one('body').text}"
            time.sleep(0.05)
        return result

    def settled(self) -> None:
        """Nothing loads any more, and nothing went wrong."""
        self.until(lambda: not self.all(".loading"))
        assert not self.all(".problem"), self.one(".problem").text

    def keys(self, *keys: str) -> None:
        """Type where the focus is."""
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def tab(self, *, back: bool = False) -> None:
        """Move the focus to the next place, or to the one before."""
        actions = ActionChains(self.driver)
        if back:
            actions.key_down(Keys.SHIFT)
        actions.send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()

    def requests(self) -> list[str]:
        """Addresses that were asked for since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]  # type: ignore[no-untyped-call]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """What the console got since the last call; a policy that was broken is among it."""
        return [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]


@contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    """A window that is closed at the end."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in ("headless", "no-sandbox", "no-first-run", *(f"disable-{name}" for name in QUIET)):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


def faults(browser: Browser) -> list[str]:
    """What axe finds against the rules of WCAG 2.1 at levels A and AA, and against good practice."""
    found = Axe().run(browser.driver)  # type: ignore[no-untyped-call]
    return [f"{v['id']}: {node['html'][:200]}" for v in found["violations"] for node in v["nodes"]]
