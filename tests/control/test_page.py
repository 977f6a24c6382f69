"""The page as it is sent: its bytes, its headers, and that nothing but itself can run in it."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from adakv_sglang.config import SCORERS
from adakv_sglang.control.pages import read_page

FILE = Path(__file__).parents[2] / "adakv_sglang" / "control" / "page" / "index.html"


class Elements(HTMLParser):
    """Every element with its attributes, and the text of `script` and `style`, character by character."""

    def __init__(self, text):
        super().__init__(convert_charrefs=False)
        self.found, self.texts, self.inside = [], {"script": [], "style": []}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.inside = tag if tag in self.texts else None

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside:
            self.texts[self.inside].append(data)


@pytest.fixture(scope="module")
def text():
    return FILE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def elements(text):
    return Elements(text)


def directives(answer):
    """The Content-Security-Policy as name -> values."""
    parts = (part.split() for part in answer.headers["content-security-policy"].split(";"))
    return {name: values for name, *values in parts}


def test_the_page_is_the_file_and_says_what_it_is(client):
    answer = client.get("/adakv/")
    assert answer.status_code == 200
    assert answer.content == FILE.read_bytes()
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_a_cache_asks_before_it_reuses_the_page_and_then_gets_no_body(client):
    first = client.get("/adakv/")
    assert first.headers["cache-control"] == "no-cache"
    for known in (first.headers["etag"], f'"other", W/{first.headers["etag"]}', "*"):
        again = client.get("/adakv/", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
    assert client.get("/adakv/", headers={"If-None-Match": '"other"'}).status_code == 200


def test_without_a_slash_it_redirects_also_behind_a_path_of_a_proxy(client):
    answer = client.get("/adakv", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (308, "adakv/")
    assert client.get("/adakv").content == FILE.read_bytes()


def test_the_policy_names_exactly_this_script_and_this_style(client, elements):
    policy = directives(client.get("/adakv/"))
    for kind in ("script", "style"):
        whole = "".join(elements.texts[kind]).encode()
        digest = base64.b64encode(hashlib.sha256(whole).digest()).decode()
        assert policy[f"{kind}-src"] == [f"'sha256-{digest}'"]
    assert [tag for tag, _ in elements.found if tag in ("script", "style")] == ["style", "script"]


def test_the_policy_lets_nothing_else_in(client):
    policy = directives(client.get("/adakv/"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == ["'none'"]
    assert policy["frame-ancestors"] == ["'none'"]
    assert policy["connect-src"] == ["'self'"]
    assert policy["require-trusted-types-for"] == ["'script'"]
    assert not [value for values in policy.values() for value in values if "unsafe" in value or "*" in value]


def test_nothing_is_loaded_from_anywhere(text, elements):
    """The only addresses in it: SVG's namespace, and the example of a server's address."""
    addresses = set(re.findall(r"(?:https?:|wss?:)?//[\w.-]+\.?\w+[^\s'\"`;)]*", text))
    named = {address for address in addresses if re.match(r"(https?|wss?)://", address)}
    assert named == {"http://www.w3.org/2000/svg", "http://localhost:30000"}
    for tag, attributes in elements.found:
        assert "src" not in attributes and tag not in ("iframe", "object", "embed", "base")
        link = attributes.get("href", "")
        assert link.startswith("data:") or link in ("", "stats", "contexts")
    assert not re.search(r"@import|url\(|sourceMappingURL", text)


def test_no_text_of_the_server_can_become_html_or_code(text, elements):
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function", text)
    for _, attributes in elements.found:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]


def test_the_form_offers_every_scorer(text):
    [listed] = re.findall(r"^const SCORERS = (\[.*\]);$", text, re.MULTILINE)
    assert sorted(json.loads(listed)) == sorted(SCORERS)


def test_the_page_is_in_the_openapi_description_and_its_redirect_is_not(app):
    paths = app.openapi()["paths"]
    assert list(paths["/adakv/"]["get"]["responses"]["200"]["content"]) == ["text/html"]
    assert "/adakv" not in paths


def test_the_page_is_read_from_the_package_once():
    assert read_page() is read_page()
    assert read_page().body == FILE.read_bytes()
