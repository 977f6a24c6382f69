"""The page in a real browser: headless Chromium against the real routes with a service in memory behind them."""

import httpx
import pytest
from browsing import check_figures, playwright_api
from page_service import PageService, application, sample_contexts, serving

from adakv_sglang.control.pages import read_page

expect = playwright_api.expect

KEY = "key-of-the-admin"
COUNT_REQUESTS = """
const ask = window.fetch;
let running = 0;
window.mostAtOnce = 0;
window.fetch = async (...order) => {
  running += 1;
  window.mostAtOnce = Math.max(window.mostAtOnce, running);
  try {
    const answer = await ask(...order);
    await answer.clone().text();
    return answer;
  } finally {
    running -= 1;
  }
};
"""


@pytest.fixture
def service():
    return PageService()


@pytest.fixture
def address(service):
    with serving(application(service)) as address:
        yield address


@pytest.fixture
def opened(page, address):
    page.goto(f"{address}/adakv/")
    expect(page.locator("#live")).to_have_text("Up to date")
    expect(page.locator("#detail")).to_be_visible()
    return page


def names(page):
    return [row.get_attribute("title") for row in page.locator("#rows .name button").all()]


def test_every_figure_is_that_of_the_stats(opened, address):
    stats = httpx.get(f"{address}/adakv/stats").json()
    check_figures(opened, stats)
    expect(opened.locator("#fallbacks-note")).to_have_text("too short 5, no room 2")


def test_the_bar_is_divided_as_the_pool_is(opened, address):
    pool = httpx.get(f"{address}/adakv/stats").json()["pool"]
    width = opened.locator("#bar").bounding_box()["width"]
    for part, slots in (("pinned", pool["pinned"]), ("plain", pool["plain"]), ("free", pool["free"])):
        drawn = opened.locator(f"#bar .k-{part}").bounding_box()["width"]
        assert drawn / width == pytest.approx(slots / pool["total"], abs=0.01)


def test_the_table_shows_what_the_list_says_newest_first(opened, address):
    listed = httpx.get(f"{address}/adakv/contexts", params={"limit": 10}).json()["contexts"]
    assert names(opened) == [context["id"] for context in listed]
    for context, row in zip(listed, opened.locator("#rows tr").all(), strict=True):
        said = row.inner_text()
        assert context["state"] in said and f"{context['tokens']:,}" in said
        assert f"{context['keep_ratio']:.2f}" in said and context["scorer"].replace("_", " ") in said
        assert (f"→ {context['slots']:,}" in said) == (context["state"] == "ready")
        assert row.locator(".tag").is_visible() == context["pinned"]


def test_pages_of_the_table_follow_each_other(browser, page):
    contexts = sample_contexts(0, copies=3)
    with serving(application(PageService(contexts))) as address:
        page.goto(f"{address}/adakv/")
        expected = [context.id for context in contexts]
        for start in (0, 10, 20, 30):
            expect(page.locator("#range")).to_have_text(f"{start + 1}–{min(start + 10, 36)} of 36")
            assert names(page) == expected[start : start + 10]
            if start < 30:
                page.get_by_role("button", name="Next").click()
        expect(page.get_by_role("button", name="Next")).to_be_disabled()


def test_sorting_covers_all_contexts_not_only_the_page(opened, service):
    most = max(service.contexts.values(), key=lambda context: context.hits)
    opened.get_by_role("button", name="Hits").click()
    expect(opened.locator("#rows .name button").first).to_have_attribute("title", most.id)
    expect(opened.locator("th[aria-sort]")).to_have_attribute("aria-sort", "descending")
    opened.get_by_role("button", name="Hits").click()
    expect(opened.locator("th[aria-sort]")).to_have_attribute("aria-sort", "ascending")
    expect(opened.locator("#rows tr").first.locator("td").nth(5)).to_have_text("0")


def test_a_state_chosen_shows_its_contexts_alone(opened, service):
    opened.get_by_role("radio", name="evicted").check()
    expect(opened.locator("#rows tr")).to_have_count(2)
    assert {service.contexts[name].state for name in names(opened)} == {"evicted"}
    opened.get_by_role("radio", name="queued").check()
    expect(opened.locator("#none")).to_have_text("No context is queued.")


def test_pinning_shows_at_once_and_a_refusal_says_why(opened, service):
    opened.allowed = "status of 409"
    free = next(c for c in service.contexts.values() if c.state == "ready" and not c.pinned)
    opened.get_by_role("button", name=f"Pin {free.id}", exact=True).click()
    expect(opened.get_by_role("button", name=f"Unpin {free.id}", exact=True)).to_be_visible()
    assert service.named("pin") == [("pin", free.id, True)]
    other = next(c for c in service.contexts.values() if c.state == "ready" and not c.pinned)
    service.contexts[other.id] = other.model_copy(update={"slots": 10**6})
    opened.get_by_role("button", name=f"Pin {other.id}", exact=True).click()
    expect(opened.locator("#trouble")).to_contain_text("pin: expected at most 131072 pinned slots")
    opened.get_by_role("button", name="Close").click()
    expect(opened.locator("#trouble")).to_be_hidden()


def test_dropping_asks_first(opened, service):
    name = next(c.id for c in service.contexts.values() if c.state == "ready")
    opened.get_by_role("button", name=f"Drop {name}", exact=True).click()
    expect(opened.locator("#drop")).to_contain_text(name)
    opened.keyboard.press("Escape")
    assert service.named("drop") == []
    opened.get_by_role("button", name=f"Drop {name}", exact=True).click()
    opened.locator("#drop").get_by_role("button", name="Drop").click()
    row = opened.locator("#rows tr", has=opened.locator(f"button[title='{name}']"))
    expect(row).to_contain_text("evicted")
    assert service.named("drop") == [("drop", name)]
    expect(row.get_by_role("button", name="Drop")).to_be_hidden()


def test_a_text_is_prepared_with_what_the_form_says(opened, service):
    opened.allowed = "status of 400"
    opened.get_by_role("button", name="Prepare a text").click()
    form = opened.locator("#prepare")
    form.get_by_label("Text").fill("too short")
    form.get_by_role("button", name="Prepare").click()
    expect(form.get_by_role("alert")).to_contain_text("the context has 2 tokens")
    form.get_by_label("Text").fill("a text that is long enough for a context")
    form.get_by_label("Keep ratio").fill("0.25")
    form.get_by_label("Scorer").select_option("kvzip")
    form.get_by_label("Pin it").check()
    form.get_by_role("button", name="Prepare").click()
    expect(opened.locator("#detail-title")).to_have_text("a-new-one")
    expect(opened.locator("#chart-note")).to_contain_text("queued")
    order = service.named("prepare")[-1][1]
    assert (order.keep_ratio, order.scorer, order.pin, order.wait) == (0.25, "kvzip", True, False)


def test_the_heat_map_shows_each_budget_by_pointer_and_by_key(opened, address):
    name = opened.locator("#detail-title").inner_text()
    details = httpx.get(f"{address}/adakv/contexts/{name}").json()
    layers, heads = len(details["head_budgets"]), len(details["head_budgets"][0])
    chart, box = opened.locator("#chart"), opened.locator("#chart").bounding_box()
    cell = (box["width"] - 56 - 8) / layers
    for layer, head in ((0, 0), (14, 0), (layers - 1, heads - 1)):
        chart.hover(position={"x": 56 + (layer + 0.5) * cell, "y": 6 + (head + 0.5) * 22})
        budget, mass = details["head_budgets"][layer][head], details["retained_mass_per_layer"][layer]
        expect(opened.locator("#readout")).to_contain_text(f"Layer {layer}, head {head}: {budget:,} of")
        expect(opened.locator("#readout")).to_contain_text(f"retains {mass * 100:.1f} %")
    chart.focus()
    opened.keyboard.press("ArrowLeft")
    expect(opened.locator("#readout")).to_contain_text(f"Layer {layers - 2}, head {heads - 1}")


def test_the_darkest_cell_is_the_largest_budget(opened, service):
    budgets = service.contexts[opened.locator("#detail-title").inner_text()].head_budgets
    most, layer, head = max((b, l, h) for l, row in enumerate(budgets) for h, b in enumerate(row))
    opened.mouse.move(0, 0)
    colour = opened.evaluate(
        """([layer, head, layers]) => {
            const canvas = document.getElementById("chart"), scale = devicePixelRatio;
            const x = 56 + (layer + 0.5) * (canvas.clientWidth - 64) / layers, y = 6 + (head + 0.5) * 22;
            return [...canvas.getContext("2d").getImageData(x * scale, y * scale, 1, 1).data.slice(0, 3)];
        }""",
        [layer, head, len(budgets)],
    )
    assert colour == pytest.approx([0x0B, 0x2F, 0x4A], abs=2)
    expect(opened.locator("#legend-high")).to_have_text(f"{most:,} tokens")


def test_texts_of_the_server_are_shown_and_never_run(page):
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    contexts = [c.model_copy(update={"text_head": evil, "reason": evil}) for c in sample_contexts(0)]
    with serving(application(PageService(contexts))) as address:
        page.goto(f"{address}/adakv/")
        expect(page.locator("#text-head")).to_have_text(f"{evil} …")
        expect(page.locator("#detail-reason")).to_have_text(evil)
        assert page.locator("img").count() == 0


def test_it_refreshes_by_itself_and_the_focus_stays(page, service, address):
    page.clock.install()
    page.goto(f"{address}/adakv/")
    expect(page.locator("#detail")).to_be_visible()
    chosen = next(context for context in service.contexts.values() if context.state == "ready")
    button = page.locator(f"button[title='{chosen.id}']")
    button.focus()
    page.keyboard.press("Enter")
    service.contexts[chosen.id] = chosen.model_copy(update={"hits": 777_777})
    page.clock.run_for(2_500)
    expect(page.locator("tr.chosen")).to_contain_text("777,777")
    expect(page.locator("#facts")).to_contain_text("777,777")
    expect(button).to_be_focused()


def test_requests_never_pile_up(page, service, address):
    """The browser's clock runs far ahead of a slow server, and somebody presses the button again and again."""
    service.delay = 0.05
    page.add_init_script(COUNT_REQUESTS)
    page.clock.install()
    page.goto(f"{address}/adakv/")
    for _ in range(10):
        page.clock.run_for(5_000)
        page.evaluate("for (let press = 0; press < 5; press += 1) document.getElementById('retry').click()")
    expect(page.locator("#live")).to_have_text("Up to date")
    assert len(service.calls) > 5
    assert page.evaluate("window.mostAtOnce") == 1


def test_a_hidden_page_asks_nothing(opened, service):
    hide = "document.dispatchEvent(new Event('visibilitychange'))"
    opened.clock.install()
    opened.reload()
    expect(opened.locator("#live")).to_have_text("Up to date")
    opened.evaluate(f"Object.defineProperty(document, 'hidden', {{value: true, configurable: true}}); {hide}")
    before = len(service.calls)
    opened.clock.run_for(60_000)
    assert len(service.calls) == before
    with opened.expect_response("**/stats"):
        opened.evaluate(f"delete document.hidden; {hide}")


def test_a_silent_server_is_said_asked_less_often_and_welcomed_back(opened, service):
    opened.allowed = "Failed to load resource"
    service.down = True
    away = opened.locator("#away")
    expect(away).to_contain_text(
        "scheduler: expected an answer within 5 s, got none; try again. Next try in 4 s"
    )
    expect(opened.locator("#live")).to_have_text("Not up to date")
    opened.get_by_role("button", name="Try now").click()
    expect(away).to_contain_text("Next try in 8 s")
    opened.context.set_offline(True)
    opened.get_by_role("button", name="Try now").click()
    expect(away).to_contain_text("The server does not answer. Next try in 16 s.")
    expect(opened.locator("#pool-total")).to_have_text("262,144")
    opened.context.set_offline(False)
    service.down = False
    opened.get_by_role("button", name="Try now").click()
    expect(opened.locator("#live")).to_have_text("Up to date")
    expect(away).to_be_hidden()


def log_in(page, key):
    expect(page.locator("#login")).to_be_visible()
    page.get_by_label("Key", exact=True).fill(key)
    page.get_by_role("button", name="Continue").click()


@pytest.mark.sglang
def test_where_only_the_routes_need_a_key_the_page_asks_for_it_once(page, service):
    page.allowed = "status of 401"
    pytest.importorskip("sglang")
    with serving(application(service, open_page=True, admin_api_key=KEY)) as address:
        page.goto(f"{address}/adakv/")
        log_in(page, "a wrong one")
        expect(page.locator("#login .wrong")).to_contain_text("without spaces")
        log_in(page, "wrong")
        expect(page.locator("#login .wrong")).to_have_text("The server did not accept this key.")
        assert service.calls == []
        log_in(page, KEY)
        expect(page.locator("#live")).to_have_text("Up to date")
        page.reload()
        expect(page.locator("#live")).to_have_text("Up to date")
        expect(page.locator("#login")).to_be_hidden()
        assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
        page.get_by_role("button", name="Forget the key").click()
        assert page.evaluate("sessionStorage.length") == 0


@pytest.mark.sglang
@pytest.mark.parametrize("kind", ["api_key", "admin_api_key"])
def test_where_the_page_needs_a_key_too_a_copy_of_it_works_from_a_file(kind, page, service, tmp_path):
    page.allowed = "status of 401|blocked by CORS|Failed to load resource"
    pytest.importorskip("sglang")
    copy = tmp_path / "adakv.html"
    with serving(application(service, **{kind: KEY})) as address:
        assert httpx.get(f"{address}/adakv/").status_code == 401
        answer = httpx.get(f"{address}/adakv/", headers={"Authorization": f"Bearer {KEY}"})
        copy.write_bytes(answer.content)
        assert answer.content == read_page().body
        page.goto(copy.as_uri())
        page.get_by_label("Server", exact=True).fill(address)
        log_in(page, "wrong")
        expect(page.locator("#away")).to_contain_text("does not answer, or does not accept the key")
        page.get_by_role("button", name="Change key").click()
        log_in(page, KEY)
        expect(page.locator("#live")).to_have_text("Up to date")
        name = next(c.id for c in service.contexts.values() if c.state == "ready" and not c.pinned)
        page.get_by_role("button", name=f"Pin {name}", exact=True).click()
        expect(page.get_by_role("button", name=f"Unpin {name}", exact=True)).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it_without_scrolling_sideways(scheme, opened):
    opened.set_viewport_size({"width": 360, "height": 740})
    opened.emulate_media(color_scheme=scheme)
    for dialog in (None, "prepare", "drop", "login"):
        if dialog:
            opened.evaluate(f"document.getElementById('{dialog}').showModal()")
            box = opened.locator(f"#{dialog}").bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= 360
            opened.evaluate(f"document.getElementById('{dialog}').close()")
        assert opened.evaluate("document.documentElement.scrollWidth") == 360
    for row in opened.locator("#rows tr").all():
        for cell in row.locator("td:visible").all():
            box = cell.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= 360


def test_the_keyboard_reaches_everything(opened, service):
    """Tab goes once around: filter, sorting, every row with its buttons, the chart, the settings."""
    reached = set()
    for _ in range(80):
        opened.keyboard.press("Tab")
        reached.add(
            opened.evaluate(
                "(e => e.id || e.getAttribute('aria-label') || e.title || e.name || e.textContent)(document.activeElement)"
            )
        )
    ready = next(c.id for c in service.contexts.values() if c.state == "ready" and not c.pinned)
    assert {"open-prepare", "state", "chart", ready, f"Pin {ready}", f"Drop {ready}"} <= reached
    assert any("Settings" in name for name in reached) and any("Hits" in name for name in reached)


def luminance(colour):
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_every_ground_they_stand_on(scheme, opened):
    opened.emulate_media(color_scheme=scheme)
    names = [
        "ink",
        "soft",
        "accent",
        "danger",
        "surface",
        "page",
        "tint",
        "raised",
        "on-accent",
        "warn-ink",
        "warn-tint",
    ]
    look = "name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim()"
    colours = {name: opened.evaluate(look, name) for name in names}
    colours = {name: c if len(c) == 7 else "#" + "".join(2 * d for d in c[1:]) for name, c in colours.items()}
    pairs = [
        (text, ground) for text in names[:4] for ground in names[4:8] if (text, ground) != ("danger", "page")
    ]
    for text, ground in [*pairs, ("on-accent", "accent"), ("warn-ink", "warn-tint")]:
        low, high = sorted(luminance(colours[name]) for name in (text, ground))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)
