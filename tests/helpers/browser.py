"""Headless Chromium by its own driver, cut off from everything but this machine."""

import contextlib
import os
import shutil
from collections.abc import Iterator

import pytest

DESKTOP, PHONE = (1280, 900), (390, 844)  # pixels
PATIENCE = 120  # seconds, on a busy machine


@contextlib.contextmanager
def chromium() -> Iterator:
    """selenium's driver of a headless Chromium; skips the test with one sentence where something of it is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: make site installs it")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("Chromium and its driver are not installed (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.add_argument("--headless=new")
    options.add_argument("--disable-dev-shm-usage")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # which root, the only user of many containers, cannot have
    # By its path: asked to look for the driver itself, selenium would look on the net.
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def resize(browser, size: tuple[int, int]) -> None:
    """Width and height of the page, which a window of Chromium could not have on a telephone's screen."""
    screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


def until(browser, expression: str):
    """The value of an expression of the page's own language, once it has one that is true."""
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.support.ui import WebDriverWait

    patient = WebDriverWait(browser, PATIENCE, ignored_exceptions=[WebDriverException])  # a page that is being left
    return patient.until(lambda it: it.execute_script(f"return {expression}"))
