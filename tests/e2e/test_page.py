"""The page of a real server in a real browser."""

import time

import pytest
from browsing import check_figures, playwright_api

pytestmark = pytest.mark.server


def test_the_page_shows_what_the_server_says_and_its_buttons_work(adakv, workload, page):
    _, context = adakv.call("/adakv/contexts", {"input_ids": workload.documents[0][:200], "keep_ratio": 0.3})
    page.goto(f"{adakv.url}/adakv/")
    playwright_api.expect(page.locator("#live")).to_have_text("Up to date")
    first = page.locator("#rows .name button").first
    playwright_api.expect(first).to_have_attribute("title", context["id"])
    _, stats = adakv.call("/adakv/stats")
    check_figures(page, stats)
    for button, pinned in (("Pin", True), ("Unpin", False)):
        page.get_by_role("button", name=f"{button} {context['id']}", exact=True).click()
        wait_for(lambda: adakv.call(f"/adakv/contexts/{context['id']}")[1]["pinned"] is pinned)  # noqa: B023


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)
