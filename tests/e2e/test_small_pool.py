"""A pool of 1,000 token slots, in which two documents of 600 tokens do not fit."""

import pytest

pytestmark = pytest.mark.server

SMALL = ("--enable-adakv", "--max-total-tokens", "1000")


def test_a_small_pool_holds_a_second_document_only_compressed(servers, workload):
    server = servers.get(*SMALL)
    document, other = workload.documents
    cached = {}
    for wish in (None, {"compress": True, "keep_ratio": 0.3}):
        server.call("/flush_cache", {})
        server.generate([*document, 1], 1, adakv=wish)
        server.generate([*other, 1], 1)
        cached[wish is None] = server.generate([*document, 2], 1)["meta_info"]["cached_tokens"]
    assert cached[True] < 10, "evicted for the second document; both begin with the same few tokens"
    assert cached[False] == len(document)


def test_a_copy_that_does_not_fit_is_served_exactly_and_told_so(servers, workload):
    server = servers.get(*SMALL)
    server.call("/flush_cache", {})
    answer = server.generate([*workload.documents[0], 1], 1, adakv={"compress": True, "keep_ratio": 0.9})
    report = answer["meta_info"]["adakv"]
    assert report["compressed"] is False
    assert "needs 540 token slots beside the 600 of the context itself" in report["reason"]
    assert server.generate([*workload.documents[0], 2], 1)["meta_info"]["cached_tokens"] == 600
