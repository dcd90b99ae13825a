"""A browser for the tests of the playground, and a server whose answers they write."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from browser_page import Page, chromium
from playground_server import Scripted


@pytest.fixture(scope="session")
def browser() -> Iterator[Page]:
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("chromium, with chromedriver, is not on this machine")
    with chromium() as driver:
        yield Page(driver)


@pytest.fixture(scope="session")
def peer() -> Iterator[Scripted]:
    peer = Scripted()
    yield peer
    peer.kill()


@pytest.fixture
def page(browser: Page, peer: Scripted) -> Iterator[Page]:
    """The page, as on a first visit. Whatever a test does there, it asks nobody but the server."""
    peer.script()
    browser.hosts(), browser.complaints()
    browser.open(peer.url)
    yield browser
    assert browser.hosts() == {urlsplit(peer.url).netloc}
    assert browser.complaints() == []
