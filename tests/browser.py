"""Fixtures for tests that look at Airflow's pages: a browser, a login, a page."""

import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed; apt-get install chromium")
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    quiet += ["--disable-component-update", "--disable-sync", "--no-proxy-server"]
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def logged_in(browser, stack, admin_password):
    """The cookies of a login to Airflow."""
    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{stack.web_address}/auth/login/")
    page.fill("#username", "admin")
    page.fill("#password", admin_password)
    page.click("input[type=submit]")
    page.wait_for_url(f"{stack.web_address}/**")
    kept = page.context.storage_state()
    page.close()
    return kept


@pytest.fixture
def page(browser, logged_in):
    """A page of Airflow, closed after the test, because an open page uses a quarter of a core."""
    viewport = {"width": 1400, "height": 850}
    context = browser.new_context(viewport=viewport, storage_state=logged_in)
    context.set_default_timeout(60_000)
    yield context.new_page()
    context.close()
