"""A real browser, Debian's Chromium, for tests of pages."""

import shutil
from contextlib import contextmanager

from tests.helpers.needs import needs

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SECONDS = 30
needs_browser = needs("chromium", "chromedriver")


@contextmanager
def chromium():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1000,1000"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


class Browsing:
    """Actions of a user on a page that classifies, and the contents of the page."""

    def until(self, browser, condition):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(browser, 4 * SECONDS, 0.05).until(lambda driver: condition())

    def write(self, browser, text):
        from selenium.webdriver.common.keys import Keys

        self.one(browser, "#text").send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.BACKSPACE, text)

    def one(self, browser, selector):
        from selenium.webdriver.common.by import By

        return browser.find_element(By.CSS_SELECTOR, selector)

    def bars(self, browser):
        """Return the current width of each bar as a fraction of the available width. The bars are animated."""
        ratio = "(each) => each.getBoundingClientRect().width / each.parentElement.getBoundingClientRect().width"
        return browser.execute_script(f"return [...document.querySelectorAll('#bars i')].map({ratio})")
