"""The tree extension over SGLang's real tree, pool and allocator, one behaviour at a time."""

import pytest
from scheduler_bench import CONFIG, SchedulerBench

DOCUMENT = list(range(100, 140))
N = len(DOCUMENT)
COMPRESS = {"compress": True}


@pytest.fixture
def prepared(bench):
    """A bench with DOCUMENT compressed: N tokens in B slots."""
    bench.run(bench.submit([*DOCUMENT, 1], adakv=COMPRESS, max_new_tokens=1))
    yield bench
    bench.check()


def ask(bench, tokens, **options):
    """Run a request to its end; returns what it used."""
    req = bench.run(bench.submit(tokens, **options))
    bench.check()
    return bench.states.of(req).context, req.cached_tokens_of_first_match


@pytest.fixture(autouse=True)
def remember_first_match(monkeypatch):
    """Note how many tokens a request found in the cache when it was admitted."""
    original = SchedulerBench._extend

    def extend(self, req, end):
        if not hasattr(req, "cached_tokens_of_first_match"):
            req.cached_tokens_of_first_match = req.prefix_len
        original(self, req, end)

    monkeypatch.setattr(SchedulerBench, "_extend", extend)


def test_a_request_that_starts_with_the_whole_context_uses_it(prepared):
    context, cached = ask(prepared, [*DOCUMENT, 5, 6, 7])
    assert context is next(iter(prepared.contexts))
    assert cached == N


def test_a_second_turn_extends_the_suffix_below_the_context(prepared):
    first = prepared.run(prepared.submit([*DOCUMENT, 5, 6, 7]))
    turn = [*first.origin_input_ids, *first.output_ids, 8, 9]
    context, cached = ask(prepared, turn)
    assert context is not None
    assert cached == N + 3 + len(first.output_ids) - 1  # the last output token was never computed


@pytest.mark.parametrize(
    "tokens",
    [DOCUMENT[:20] + [5], [*DOCUMENT[:-1], 5, 6], DOCUMENT, [*DOCUMENT[:5], 99, *DOCUMENT[6:], 5]],
    ids=["half of it", "all but the last", "nothing left to run", "one token differs"],
)
def test_a_request_that_matches_only_a_part_stays_on_the_plain_path(prepared, tokens):
    context, cached = ask(prepared, tokens)
    assert context is None
    assert cached == 0  # the plain path was released


@pytest.mark.parametrize(
    "scope", [{"extra_key": "tenant"}, {"cache_salt": "salt"}, {"lora_id": "adapter"}], ids=str
)
def test_a_request_from_another_namespace_never_touches_the_context(prepared, scope):
    assert ask(prepared, [*DOCUMENT, 5], **scope) == (None, 0)


def test_a_caller_cannot_name_a_contexts_namespace(prepared):
    namespace = next(iter(prepared.contexts)).namespace
    assert ask(prepared, [*DOCUMENT, 5], extra_key=namespace) == (None, 0)


def test_a_context_in_a_namespace_serves_that_namespace_alone(bench):
    scope = {"extra_key": "tenant", "cache_salt": "salt"}
    bench.run(bench.submit([*DOCUMENT, 1], adakv=COMPRESS, max_new_tokens=1, **scope))
    assert ask(bench, [*DOCUMENT, 5], **scope)[0] is not None
    assert ask(bench, [*DOCUMENT, 5])[0] is None


def test_logprobs_of_the_context_itself_are_computed_on_the_plain_path(prepared):
    req = prepared.submit([*DOCUMENT, 5])
    req.return_logprob, req.logprob_start_len = True, 10
    prepared.run(req)
    assert prepared.states.of(req).context is None


def test_matching_again_and_again_changes_nothing(prepared):
    req = prepared.submit([*DOCUMENT, 5])
    first = prepared.match(req)
    keys = {req.extra_key}
    for _ in range(3):
        assert prepared.match(req).device_prefix_len == first.device_prefix_len == N
        keys.add(req.extra_key)
    assert keys == {next(iter(prepared.contexts)).namespace}
    prepared.evict(prepared.allocator.size)
    assert prepared.match(req).device_prefix_len == 0
    assert req.extra_key is None


def test_compressing_frees_exactly_n_minus_b_slots(bench):
    bench.run(bench.submit([*DOCUMENT, 1], max_new_tokens=1))
    plain = bench.allocator.available_size()
    assert plain == bench.allocator.size - (N + 1)
    req = bench.run(bench.submit([*DOCUMENT, 1], adakv=COMPRESS, max_new_tokens=1))
    assert req.cached_tokens_of_first_match == N - CONFIG.window  # only the window is computed again
    slots = CONFIG.num_slots(N)
    assert (
        bench.allocator.available_size() == bench.allocator.size - slots
    )  # the last prompt token's slot too
    assert bench.tree.evictable_size() == slots
    prefix = next(iter(bench.contexts)).prefix
    assert prefix.num_slots == slots and sum(map(sum, prefix.head_budgets)) == slots * 2 * 2


def test_a_second_document_fits_that_did_not_fit_before():
    bench = SchedulerBench(pool_size=70)
    other = list(range(200, 240))
    bench.run(bench.submit([*DOCUMENT, 1], adakv=COMPRESS, max_new_tokens=1))
    follow_up = bench.submit([*DOCUMENT, 2], max_new_tokens=3)
    assert bench.admit(follow_up)  # holds the context, so that nothing can be evicted
    second = bench.submit([*other, 1], max_new_tokens=1)
    assert bench.admit(second)
    bench.check()
    plain = SchedulerBench(pool_size=70)
    plain.run(plain.submit([*DOCUMENT, 1], max_new_tokens=1))
    assert plain.admit(plain.submit([*DOCUMENT, 2], max_new_tokens=3))
    assert not plain.admit(plain.submit([*other, 1], max_new_tokens=1))


def test_evicting_a_context_gives_back_exactly_its_own_slots(prepared):
    before = prepared.allocator.available_size()
    prepared.evict(1)
    assert prepared.allocator.available_size() == before + CONFIG.num_slots(N) == prepared.allocator.size
    assert len(prepared.contexts) == 0


def test_the_plain_path_stays_while_a_running_request_holds_it(bench):
    running = bench.submit([*DOCUMENT, 4], max_new_tokens=5)
    bench.admit(running)
    bench.step(running)
    bench.run(bench.submit([*DOCUMENT, 1], adakv=COMPRESS, max_new_tokens=1))
    bench.check()
    assert len(bench.tree.plain_paths) == 1
    assert bench.tree.protected_size() >= N
    while running in bench.running:
        bench.step(running)
        bench.check()
    assert len(bench.tree.plain_paths) == 0
    assert bench.allocator.available_size() == bench.allocator.size - CONFIG.num_slots(N)


def test_a_beginning_shared_with_others_is_not_released(bench):
    other = DOCUMENT[:20] + list(range(300, 310))
    bench.run(bench.submit(other, max_new_tokens=1))
    bench.run(bench.submit([*DOCUMENT, 1], adakv=COMPRESS, max_new_tokens=1))
    _, cached = ask(bench, [*other, 5])
    assert cached == len(other)


def test_a_prompt_whose_copy_does_not_fit_is_served_exactly_and_told_so():
    bench = SchedulerBench(pool_size=50)
    req = bench.run(bench.submit([*DOCUMENT, 1], adakv=COMPRESS, max_new_tokens=1))
    bench.check()
    assert "needs 20 token slots beside the 40" in bench.states.of(req).refusal
    assert len(bench.contexts) == 0
    assert ask(bench, [*DOCUMENT, 5]) == (None, N)  # the exact cache was left alone


def test_a_failure_while_compressing_leaves_the_exact_cache_in_use(bench, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("adakv_sglang.integration.compressor.compress_prefix", fail)
    req = bench.run(bench.submit([*DOCUMENT, 1], adakv=COMPRESS, max_new_tokens=1))
    bench.check()
    assert "RuntimeError: out of memory" in bench.states.of(req).refusal
    assert ask(bench, [*DOCUMENT, 5]) == (None, N)


@pytest.mark.parametrize(
    ("tokens", "wish", "reason"),
    [
        ([1, 2, 3, 4], COMPRESS, "the context has 3 tokens; expected more than 5"),
        (DOCUMENT, {"compress": True, "keep_ratio": 0.1}, "is 4 slots, fewer than the 5 tokens always kept"),
        (DOCUMENT, {"compress": True, "context_tokens": 40}, "expected at most 39"),
        (DOCUMENT, {"compress": True, "keep_ratio": 2}, "keep_ratio: expected a number in (0, 1], got 2"),
    ],
)
def test_orders_that_cannot_be_carried_out_say_why(bench, tokens, wish, reason):
    req = bench.run(bench.submit(tokens, adakv=wish, max_new_tokens=1))
    assert reason in bench.states.of(req).refusal
    assert len(bench.contexts) == 0


def test_context_tokens_ends_the_context_earlier(bench):
    bench.run(bench.submit([*DOCUMENT, 1], adakv={**COMPRESS, "context_tokens": 30}, max_new_tokens=1))
    assert ask(bench, [*DOCUMENT[:30], 7, 8])[1] == 30


@pytest.mark.parametrize("chunk", [3, 5, 39])
def test_a_window_that_is_computed_in_pieces_is_captured_whole(bench, chunk):
    bench.run(bench.submit([*DOCUMENT, 1], adakv=COMPRESS, max_new_tokens=1), chunk)
    assert ask(bench, [*DOCUMENT, 5])[1] == N


def test_preparing_twice_is_one_context(prepared):
    req = prepared.run(prepared.submit([*DOCUMENT, 2], adakv=COMPRESS))
    assert len(prepared.contexts) == 1
    assert prepared.states.of(req).context is next(iter(prepared.contexts))


def test_two_orders_in_flight_make_one_context():
    bench = SchedulerBench(pool_size=200)
    pair = [bench.submit([*DOCUMENT, token], adakv=COMPRESS, max_new_tokens=1) for token in (1, 2)]
    assert bench.admit(pair[0]) and bench.admit(pair[1])
    for req in pair:
        bench.step(req)
        bench.check()
    assert len(bench.contexts) == 1
    assert bench.states.of(pair[0]).made is bench.states.of(pair[1]).made


def test_other_settings_supersede_a_context_and_the_first_ones_recall_it(prepared):
    first = next(iter(prepared.contexts))
    prepared.run(prepared.submit([*DOCUMENT, 1], adakv={**COMPRESS, "keep_ratio": 0.25}, max_new_tokens=1))
    second = ask(prepared, [*DOCUMENT, 5])[0]
    assert second is not first and second.prefix.num_slots == 10
    prepared.run(prepared.submit([*DOCUMENT, 1], adakv=COMPRESS, max_new_tokens=1))
    assert ask(prepared, [*DOCUMENT, 6])[0] is first


def test_the_longest_context_wins():
    bench = SchedulerBench(pool_size=200)
    longer = [*DOCUMENT, *range(400, 420)]
    for tokens in (DOCUMENT, longer):
        bench.run(bench.submit([*tokens, 1], adakv=COMPRESS, max_new_tokens=1))
    assert ask(bench, [*longer, 5])[1] == len(longer)
    assert ask(bench, [*DOCUMENT, 5])[1] == N


def test_a_retracted_request_finds_its_context_again(prepared):
    req = prepared.submit([*DOCUMENT, 5], max_new_tokens=4)
    prepared.admit(req)
    prepared.step(req)
    prepared.retract(req)
    prepared.check()
    prepared.run(req)
    assert prepared.states.of(req).context is next(iter(prepared.contexts))


def test_a_retracted_order_is_carried_out_when_it_runs_again(bench):
    req = bench.submit([*DOCUMENT, 1], adakv=COMPRESS, max_new_tokens=1)
    bench.admit(req, chunk=30)
    bench.retract(req)
    bench.check()
    bench.run(req)
    assert bench.states.of(req).made is not None


def test_an_aborted_order_leaves_nothing_behind(bench):
    waiting = bench.submit([*DOCUMENT, 1], adakv=COMPRESS)
    bench.match(waiting)
    bench.abort(waiting)
    running = bench.submit([*DOCUMENT, 1], adakv=COMPRESS)
    bench.admit(running, chunk=10)
    bench.abort(running)
    bench.check()
    assert len(bench.contexts) == 0


def test_a_flush_forgets_contexts_and_starts_from_an_empty_pool(prepared):
    prepared.flush()
    prepared.check()
    assert prepared.allocator.available_size() == prepared.allocator.size
    assert ask(prepared, [*DOCUMENT, 5]) == (None, 0)


def test_a_context_whose_node_is_gone_is_dropped_not_trusted(prepared):
    req = prepared.submit([*DOCUMENT, 5])
    prepared.tree.tree_core.reset()  # as if the node had gone without the component being told
    prepared.allocator.clear()
    assert prepared.match(req).device_prefix_len == 0
    assert req.extra_key is None and len(prepared.contexts) == 0
    assert prepared.match(req).device_prefix_len == 0
