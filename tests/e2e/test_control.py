"""The routes under /adakv on a real server: what they answer, what they refuse, and that nothing is left behind."""

import json
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = pytest.mark.server

CONTEXTS = "/adakv/contexts"
UNKNOWN = f"{CONTEXTS}/{'0' * 24}"
RATIO = 0.3
TOKENS, SLOTS = 200, 60
SHAPE = (30, 3, 64)  # of the model: layers, KV heads, head size


def call(server, method, path, body=None):
    """Status and decoded answer; a body that is bytes is sent as it is."""
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    request = urllib.request.Request(
        server.url + path, data, {"content-type": "application/json"}, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    return status, json.loads(text) if text.startswith(("{", "[")) else text


def prepare(server, **body):
    return call(server, "POST", CONTEXTS, {"keep_ratio": RATIO, **body})


def made(server, **body):
    status, context = prepare(server, **body)
    assert status == 201, context
    return context


def show(server, context):
    return call(server, "GET", f"{CONTEXTS}/{context['id']}")[1]


def stats(server):
    status, found = call(server, "GET", "/adakv/stats")
    assert status == 200, found
    pool = found["pool"]
    assert pool["free"] + pool["plain"] + pool["compressed"] + pool["held"] == pool["total"]
    return found


@pytest.fixture
def document(workload):
    return workload.documents[0][:TOKENS]


@pytest.fixture
def text(workload, document):
    return workload.tokenizer.decode(document)


@pytest.fixture
def prompt(workload, document):
    return document + workload.question("Who is accused in this text?")


def test_a_context_from_its_order_to_its_end(adakv, workload, document, prompt):
    before = stats(adakv)
    start = time.time()
    context = made(adakv, input_ids=document)
    sizes = tuple(context[name] for name in ("tokens", "slots", "saved_slots"))
    assert context["state"] == "ready" and sizes == (TOKENS, SLOTS, TOKENS - SLOTS)
    layers, heads, head_dim = SHAPE
    assert context["saved_bytes"] == (TOKENS - SLOTS) * 2 * layers * heads * head_dim * 4
    assert context["origin"] == "api" and context["visible"] and not context["pinned"]
    assert context["hits"] == 0 and context["last_used"] is None and start < context["created"] < time.time()
    assert context["token_ids_head"] == document[:32]
    assert context["text_head"] == workload.tokenizer.decode(document[:32])
    assert sum(map(sum, context["head_budgets"])) == SLOTS * layers * heads
    assert len(context["retained_mass_per_layer"]) == layers and context["replicas"] == [0]

    again, same = prepare(adakv, input_ids=document)
    assert again == 200 and same == context
    answer = workload.ask(adakv, prompt, 4)
    assert answer["meta_info"]["cached_tokens"] == TOKENS
    assert answer["meta_info"]["adakv"]["context_id"] == context["id"]
    used = show(adakv, context)
    assert used["hits"] == 1 and used["last_used"] > context["created"]

    now = stats(adakv)
    assert now["pool"]["compressed"] == now["contexts"]["ready"] * SLOTS == SLOTS
    assert (now["slots_saved"], now["bytes_saved"]) == (TOKENS - SLOTS, context["saved_bytes"])
    assert now["compressions"] - before["compressions"] == now["hits"] - before["hits"] == 1
    assert now["compression_seconds"] > before["compression_seconds"]

    status, dropped = call(adakv, "DELETE", f"{CONTEXTS}/{context['id']}")
    assert (status, dropped["state"], dropped["reason"]) == (200, "evicted", "dropped")
    assert dropped["slots"] == 0 and not dropped["visible"] and dropped["hits"] == 1
    after = stats(adakv)
    assert after["pool"]["free"] == after["pool"]["total"]  # what was computed below it went with it
    assert after["contexts"]["ready"] == 0
    assert workload.ask(adakv, prompt, 2)["meta_info"]["cached_tokens"] == 0
    assert call(adakv, "DELETE", f"{CONTEXTS}/{context['id']}")[0] == 200


def test_the_list_is_paged_newest_first_and_by_state(adakv, workload):
    older, newer = [made(adakv, input_ids=each[:TOKENS]) for each in workload.documents]
    call(adakv, "DELETE", f"{CONTEXTS}/{older['id']}")
    pages = [call(adakv, "GET", f"{CONTEXTS}?limit=1&offset={offset}")[1] for offset in (0, 1)]
    assert [page["contexts"][0]["id"] for page in pages] == [newer["id"], older["id"]]
    assert pages[0]["total"] == pages[1]["total"] >= 2
    ready = call(adakv, "GET", f"{CONTEXTS}?state=ready")[1]
    assert [each["id"] for each in ready["contexts"]] == [newer["id"]] and ready["total"] == 1
    assert call(adakv, "GET", f"{CONTEXTS}?offset=100000")[1]["contexts"] == []
    described = {name: value for name, value in show(adakv, newer).items() if name in ready["contexts"][0]}
    assert ready["contexts"][0] == described
    counted = stats(adakv)["contexts"]
    assert sum(counted.values()) == pages[0]["total"] and counted["ready"] == 1


def test_a_text_ends_where_every_continuation_shares_its_tokens(adakv, text):
    context = made(adakv, text=text)
    for question in (" Who?", "\n\nQuestion", "and"):
        info = adakv.generate(text + question, 2)["meta_info"]
        assert info["adakv"]["context_id"] == context["id"] and info["cached_tokens"] >= context["tokens"]


def test_messages_end_where_a_later_conversation_goes_on(adakv, text):
    head = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
    context = made(adakv, messages=head, protect_messages=[0])
    more = [{"role": "assistant", "content": "I have read it."}, {"role": "user", "content": "Why?"}]
    body = {"model": "m", "messages": head + more, "max_tokens": 2}
    info = adakv.post("/v1/chat/completions", {**body, "return_meta_info": True})["choices"][0]["meta_info"]
    assert info["adakv"]["context_id"] == context["id"] and info["cached_tokens"] >= context["tokens"]
    status, refused = prepare(adakv, messages=head, protect_messages=[1])
    assert status == 400 and "raise keep_ratio or protect fewer" in refused["error"]["message"]


def test_a_question_belongs_to_the_prefix(adakv, text):
    context = made(adakv, text=text + "\n", question="Who is accused? ", scorer="snapkv")
    info = adakv.generate(text + "\nWho is accused? In this text", 2)["meta_info"]
    assert info["adakv"]["context_id"] == context["id"]
    asked = made(adakv, messages=[{"role": "system", "content": text}], question="Who is accused?")
    assert show(adakv, asked)["tokens"] > context["tokens"]


@pytest.mark.parametrize(
    ("order", "slots", "found"),
    [
        ({"token_budget": 77}, 77, {"target": None}),
        ({"token_budget": 10_000}, TOKENS, {"keep_ratio": 1.0}),
        ({"min_retained": 0.5, "scorer": "snapkv"}, None, {"target": {"min_retained": 0.5}}),
        (
            {"report_bound": True, "alpha": 1, "allocator": "uniform"},
            100,
            {"allocator": "uniform", "alpha": 1},
        ),
        ({"context_tokens": 150, "protect": [[50, 60], [8, 20]]}, 75, {"tokens": 150}),
        ({"extra_key": "tenant", "cache_salt": "salt"}, 100, {}),
    ],
    ids=str,
)
def test_settings_reach_the_compression(adakv, document, order, slots, found):
    status, context = call(adakv, "POST", CONTEXTS, {"input_ids": document, **order})
    assert status == 201, context
    assert slots in (None, context["slots"]) and {**context, **found} == context
    assert (context["bound"] is not None) == ("report_bound" in order)
    assert context["keep_ratio"] == pytest.approx(context["slots"] / context["tokens"])
    follow_up = {name: value for name, value in order.items() if name in ("extra_key", "cache_salt")}
    info = adakv.generate([*document[: context["tokens"]], 5], 1, **follow_up)["meta_info"]
    assert info["adakv"]["context_id"] == context["id"]


def test_an_order_need_not_be_waited_for(adakv, document):
    status, queued = prepare(adakv, input_ids=document, wait=False)
    assert (status, queued["state"], queued["origin"]) == (202, "queued", "api")
    deadline = time.monotonic() + 60
    while (found := show(adakv, queued))["state"] != "ready" and time.monotonic() < deadline:
        assert found["state"] in ("queued", "scoring"), found
        time.sleep(0.05)
    assert found["slots"] == SLOTS


def test_orders_for_the_same_context_at_the_same_time_are_one(adakv, document):
    before = stats(adakv)["compressions"]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: prepare(adakv, input_ids=document), range(6)))
    assert sorted(status for status, _ in answers) == [200] * 5 + [201]
    assert len({answer["id"] for _, answer in answers}) == 1
    assert stats(adakv)["compressions"] - before == 1


def test_a_request_that_prepares_is_listed_like_an_order(adakv, document):
    report = adakv.generate([*document, 1], 1, adakv={"compress": True})["meta_info"]["adakv"]
    assert show(adakv, {"id": report["context_id"]})["origin"] == "request"
    body = {"text": "x", "sampling_params": {"custom_params": {"adakv_api": "mine"}}}
    assert adakv.call("/generate", body)[0] == 400


def test_a_pinned_context_is_protected_until_it_is_unpinned(adakv, document):
    context = made(adakv, input_ids=document, pin=True)
    assert context["pinned"] and stats(adakv)["pool"]["pinned"] == SLOTS
    assert adakv.state()["pool"]["protected"] == SLOTS
    path = f"{CONTEXTS}/{context['id']}"
    for pinned in (True, False, False):
        status, info = call(adakv, "PATCH", path, {"pinned": pinned})
        assert (status, info["pinned"]) == (200, pinned)
    assert stats(adakv)["pool"]["pinned"] == adakv.state()["pool"]["protected"] == 0
    assert call(adakv, "POST", CONTEXTS, {"input_ids": document, "keep_ratio": RATIO, "pin": True})[1][
        "pinned"
    ]
    adakv.call("/flush_cache", {})
    gone = show(adakv, context)
    assert (gone["state"], gone["reason"], gone["pinned"]) == ("evicted", "flushed", False)
    status, refused = call(adakv, "PATCH", path, {"pinned": True})
    assert status == 409 and "is evicted; prepare it again" in refused["error"]["message"]


def test_a_context_dropped_during_a_stream_serves_it_to_its_end(adakv, workload, document, prompt):
    context = made(adakv, input_ids=document)
    expected = workload.ask(adakv, prompt, 24)["output_ids"]
    body = {"input_ids": prompt, "stream": True}
    body["sampling_params"] = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}
    data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(adakv.url + "/generate", data, headers)) as stream:
        first = stream.readline()
        status, dropped = call(adakv, "DELETE", f"{CONTEXTS}/{context['id']}")
        lines = [line[6:] for line in (first, *stream) if line.startswith(b"data: {")]
    assert (status, dropped["state"]) == (200, "evicted")
    assert json.loads(lines[-1])["output_ids"] == expected
    assert stats(adakv)["pool"]["compressed"] == 0
    assert adakv.state()["contexts"] == []


LONG = "word " * 2_000_000
MESSAGE = {"role": "user", "content": "Hello"}
BAD = [
    ("POST", CONTEXTS, b"{", 400, "JSON"),
    ("POST", CONTEXTS, [], 422, "expected an object"),
    ("POST", CONTEXTS, {}, 422, "exactly one, got none"),
    ("POST", CONTEXTS, {"text": "a", "input_ids": [1]}, 422, "exactly one"),
    ("POST", CONTEXTS, {"text": ""}, 422, "text"),
    ("POST", CONTEXTS, {"text": 5}, 422, "text"),
    ("POST", CONTEXTS, {"text": "Too short."}, 400, "expected more than 36"),
    ("POST", CONTEXTS, {"text": LONG}, 400, "expected at most"),
    ("POST", CONTEXTS, {"text": LONG + LONG}, 413, "10485760"),
    ("POST", CONTEXTS, {"input_ids": []}, 422, "input_ids"),
    ("POST", CONTEXTS, {"input_ids": [-1]}, 422, "input_ids"),
    ("POST", CONTEXTS, {"input_ids": [10**9] * 100}, 400, "expected tokens below 49152, got 1000000000"),
    ("POST", CONTEXTS, {"input_ids": [1] * 9000}, 400, "expected at most"),
    ("POST", CONTEXTS, {"input_ids": [1] * 100, "keep_ratio": 7}, 422, "keep_ratio"),
    ("POST", CONTEXTS, {"input_ids": [1] * 100, "keep_ratio": 0.01}, 400, "raise keep_ratio"),
    ("POST", CONTEXTS, {"input_ids": [1] * 100, "keep_ratio": 0.5, "token_budget": 9}, 422, "expected one"),
    ("POST", CONTEXTS, {"input_ids": [1] * 100, "token_budget": 3}, 400, "fewer than the 36 tokens"),
    ("POST", CONTEXTS, {"input_ids": [1] * 100, "scorer": "magic"}, 422, "scorer"),
    ("POST", CONTEXTS, {"input_ids": [1] * 100, "allocator": "magic"}, 422, "allocator"),
    ("POST", CONTEXTS, {"input_ids": [1] * 100, "alpha": 2}, 422, "alpha"),
    ("POST", CONTEXTS, {"input_ids": [1] * 100, "protect": [[5, 5]]}, 422, "start < end"),
    ("POST", CONTEXTS, {"input_ids": [1] * 100, "protect": [[50, 500]]}, 400, "0 to 100"),
    ("POST", CONTEXTS, {"input_ids": [1] * 100, "context_tokens": 101}, 400, "at most 100"),
    ("POST", CONTEXTS, {"input_ids": [1] * 100, "question": "Why?"}, 422, "question"),
    ("POST", CONTEXTS, {"input_ids": [1] * 100, "dp_rank": 1}, 400, "dp_rank: expected 0 to 0"),
    ("POST", CONTEXTS, {"input_ids": [1] * 100, "extra_key": "\x1fadakv:x"}, 400, "extra_key"),
    ("POST", CONTEXTS, {"input_ids": [1] * 100, "pinned": True}, 422, "pinned"),
    ("POST", CONTEXTS, {"messages": []}, 422, "messages"),
    ("POST", CONTEXTS, {"messages": [{"content": "x"}]}, 422, "role"),
    ("POST", CONTEXTS, {"messages": [{"role": "clown", "content": "x"}]}, 400, "messages"),
    ("POST", CONTEXTS, {"messages": [{"role": "user", "content": 7}]}, 400, "messages"),
    ("POST", CONTEXTS, {"messages": [MESSAGE], "protect_messages": [4]}, 400, "protect_messages"),
    ("GET", UNKNOWN, None, 404, "GET /adakv/contexts"),
    ("GET", f"{CONTEXTS}/..%2f..", None, 404, ""),
    ("PATCH", UNKNOWN, {"pinned": True}, 404, "GET /adakv/contexts"),
    ("PATCH", UNKNOWN, {"pinned": "yes"}, 422, "pinned"),
    ("DELETE", UNKNOWN, None, 404, "GET /adakv/contexts"),
    ("GET", f"{CONTEXTS}?limit=0", None, 422, "limit"),
    ("GET", f"{CONTEXTS}?offset=-1", None, 422, "offset"),
    ("GET", f"{CONTEXTS}?state=lost", None, 422, "state"),
    ("PUT", CONTEXTS, {}, 405, ""),
]


def test_bad_input_is_answered_with_what_to_do_and_leaves_nothing_behind(adakv):
    before = stats(adakv)
    for method, path, body, expected, words in BAD:
        status, answer = call(adakv, method, path, body)
        told = f"{method} {path} {json.dumps(body)[:100] if not isinstance(body, bytes) else body}: {answer}"
        assert status == expected, f"{status}, {told}"
        if words:
            assert answer["error"]["code"] == status and words in answer["error"]["message"], told
    after = stats(adakv)
    assert len(BAD) >= 20
    assert (after["pool"], after["contexts"]) == (before["pool"], before["contexts"])


def test_the_routes_are_described_and_the_page_is_there(adakv):
    status, described = call(adakv, "GET", "/openapi.json")
    assert status == 200
    assert {CONTEXTS, f"{CONTEXTS}/{{context_id}}", "/adakv/stats"} <= set(described["paths"])
    status, page = call(adakv, "GET", "/adakv/")
    assert status == 200 and page.lstrip().lower().startswith("<!doctype html>")
