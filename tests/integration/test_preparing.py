"""Orders to prepare a context: carried out, refused, repeated, interrupted."""

import pytest
from scheduler_bench import COMPRESS, CONFIG, DOCUMENT, N, SchedulerBench, ask


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


def test_exact_copies_that_come_too_late_are_released_as_well():
    bench = SchedulerBench(pool_size=300)
    first = bench.submit([*DOCUMENT, 1], adakv=COMPRESS, max_new_tokens=1)
    second = bench.submit([*DOCUMENT, 2], adakv=COMPRESS, max_new_tokens=1)
    plain = bench.submit([*DOCUMENT, 3], max_new_tokens=1)
    for req in (first, second, plain):
        bench.admit(req, chunk=10)
    for req in (first, second, plain):
        while req in bench.running:
            bench.step(req, chunk=10)
            bench.check()
    assert bench.states.of(second).made is bench.states.of(first).made
    assert bench.allocator.available_size() == bench.allocator.size - CONFIG.num_slots(N)


def test_a_context_that_left_before_the_request_ran_is_prepared_again(prepared):
    req = prepared.submit([*DOCUMENT, 1], adakv=COMPRESS, max_new_tokens=1)
    prepared.match(req)
    prepared.evict(prepared.allocator.size)
    prepared.run(req)
    assert prepared.states.of(req).made is not None


def test_prompts_that_are_not_plain_text_are_refused_as_contexts(bench):
    req = bench.submit([*DOCUMENT, 1], adakv=COMPRESS, max_new_tokens=1)
    req.beam_group = object()
    bench.match(req)
    assert "only text prompts can be contexts" in bench.states.of(req).refusal


def test_other_settings_supersede_a_context_and_the_first_ones_recall_it(prepared):
    first = next(iter(prepared.contexts))
    prepared.run(prepared.submit([*DOCUMENT, 1], adakv={**COMPRESS, "keep_ratio": 0.25}, max_new_tokens=1))
    second = ask(prepared, [*DOCUMENT, 5])[0]
    assert second is not first and second.prefix.num_slots == 10
    prepared.run(prepared.submit([*DOCUMENT, 1], adakv=COMPRESS, max_new_tokens=1))
    assert ask(prepared, [*DOCUMENT, 6])[0] is first


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
