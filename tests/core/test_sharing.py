"""Which prefixes have been shared by enough requests, and how a prefix is named."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adakv_sglang.core.sharing import SPACING, SharingTable, digests, shared_lengths

PREFIXES = [bytes([number]) for number in range(6)]
VISITS = st.lists(st.integers(0, len(PREFIXES) - 1), max_size=60)
NODES = st.lists(st.tuples(st.integers(1, 200), st.integers(1, 5)), max_size=8)


def see(table, *prefixes, known=1):
    """One request that shares these; returns the one that it makes due."""
    place = table.see(prefixes, [known] * len(prefixes))
    return None if place is None else prefixes[place]


# -- the table ----------------------------------------------------------------------------------------


def test_a_prefix_is_due_when_enough_requests_have_shared_it_and_then_from_anew():
    table = SharingTable(hits=3)
    assert [see(table, b"a") for _ in range(7)] == [None, None, b"a", None, None, b"a", None]


def test_a_new_prefix_starts_with_what_the_cache_has_counted():
    table = SharingTable(hits=3)
    assert see(table, b"a", known=2) is None
    assert see(table, b"a", known=3) == b"a"
    assert see(table, b"b", known=9) == b"b"
    assert see(table, b"b", known=10) is None, "the cache's count is of no more interest"


def test_the_longest_of_those_due_is_named_and_the_others_are_served_with_it():
    table = SharingTable(hits=2)
    assert see(table, b"a", b"ab") is None
    assert see(table, b"a", b"ab", b"abc") == b"ab"
    assert see(table, b"a") is None
    assert see(table, b"abc") == b"abc"
    assert see(table, b"a") == b"a"


def test_the_prefix_seen_longest_ago_is_forgotten():
    table = SharingTable(hits=2, capacity=2)
    for prefix in (b"a", b"b", b"a", b"c"):
        see(table, prefix)
    assert len(table) == 2
    assert see(table, b"b") is None, "forgotten: its count starts anew"


def test_a_cleared_table_is_as_new():
    table = SharingTable(hits=2)
    see(table, b"a")
    table.clear()
    assert len(table) == 0 and see(table, b"a") is None


@given(VISITS, st.integers(2, 5))
def test_without_forgetting_every_prefix_is_due_once_in_so_many_visits(visits, hits):
    table, seen = SharingTable(hits), dict.fromkeys(PREFIXES, 0)
    for number in visits:
        prefix = PREFIXES[number]
        seen[prefix] += 1
        assert see(table, prefix) == (prefix if seen[prefix] % hits == 0 else None)


@given(
    st.lists(st.tuples(st.lists(st.sampled_from(PREFIXES), unique=True), st.integers(1, 4)), max_size=40),
    st.integers(2, 4),
    st.integers(1, 8),
)
def test_it_never_holds_more_than_it_may_and_twins_agree(requests, hits, capacity):
    """Two ranks that see the same come to the same."""
    twins = SharingTable(hits, capacity), SharingTable(hits, capacity)
    for prefixes, known in requests:
        first, second = (see(table, *prefixes, known=known) for table in twins)
        assert first == second and (first is None or first in prefixes)
        assert len(twins[0]) == len(twins[1]) <= capacity


# -- where a prefix may end ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "lengths"),
    [
        ([(600, 3), (20, 1)], {576: 3}),
        ([(600, 3), (4, 3), (1, 2), (30, 1)], {576: 3}),
        ([(600, 5), (200, 3), (9, 1)], {576: 5, 768: 3}),
        ([(230, 2), (9, 1)], {200: 2}),
        ([(199, 2), (9, 1)], {}),
        ([(600, 1)], {}),
        ([(200, 2), (50, 2), (300, 1)], {200: 2}),
        ([], {}),
    ],
)
def test_shared_prefixes_end_at_round_lengths_from_the_shortest_on(nodes, lengths):
    assert shared_lengths(nodes, 200, 10**6) == lengths


def test_a_prefix_ends_before_the_last_token_that_a_context_could_serve():
    assert shared_lengths([(640, 2)], 200, 639) == {576: 2}
    assert shared_lengths([(640, 2)], 200, 640) == {640: 2}
    assert shared_lengths([(640, 2)], 200, 199) == {}


@given(NODES, st.integers(1, 300), st.integers(1, 1200))
def test_every_length_lies_in_a_shared_part_of_the_path(nodes, shortest, longest):
    found = shared_lengths(nodes, shortest, longest)
    ends = [sum(tokens for tokens, _ in nodes[: place + 1]) for place in range(len(nodes))]
    shared = [end for end, (_, requests) in zip(ends, nodes, strict=True) if requests > 1]
    assert list(found) == sorted(found)
    for length, requests in found.items():
        assert shortest <= length <= min(longest, max(shared))
        assert length == shortest or length % SPACING == 0
        assert requests in {count for _, count in nodes} - {1}
    if shared and min(max(shared), longest) >= shortest:
        assert max(found) > min(max(shared), longest) - SPACING


# -- names --------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40),
    st.sets(st.integers(0, 40)),
    st.sampled_from([None, "", "tenant"]),
    st.sampled_from([None, "", "salt"]),
)
def test_a_prefix_has_one_name_whatever_comes_after_it(tokens, lengths, extra_key, salt):
    lengths = sorted(length for length in lengths if length <= len(tokens))
    names = digests(extra_key, salt, array("q", tokens), lengths)
    assert len(set(names)) == len(names) == len(lengths)
    for length, name in zip(lengths, names, strict=True):
        assert digests(extra_key, salt, array("q", tokens[:length]), [length]) == [name]
        assert len(name) == 16


def test_other_tokens_and_other_namespaces_have_other_names():
    scopes = [(None, None), ("", None), (None, ""), ("a", None), (None, "a"), ("a", "b"), ("b", "a")]
    prompts = [[1, 2, 3], [1, 2, 4], [1, 2]]
    names = [
        digests(extra_key, salt, array("q", tokens), [len(tokens)])[0]
        for extra_key, salt in scopes
        for tokens in prompts
    ]
    assert len(set(names)) == len(scopes) * len(prompts)
