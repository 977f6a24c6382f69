"""Measuring through a server: every answer comes from the context that was meant, once."""

from functools import partial

import pytest
from ruler.generate import Rows
from ruler.results import Run, load
from ruler.run import Job, NotMeasured, measure, parse_methods, plan, run_jobs

RUN = Run("m", 0, 700)


class FakeServer:
    """Contexts by namespace and tokens; answers with the needle. evicted: contexts to lose before a question."""

    def __init__(self, tokenizer, evicted=0, refusal=None):
        self.tokenizer, self.evicted, self.refusal = tokenizer, evicted, refusal
        self.contexts, self.calls = {}, []

    def generate(self, tokens, max_new_tokens, adakv=None, extra_key=None):
        self.calls.append((extra_key, max_new_tokens))
        if adakv is not None and max_new_tokens == 1:
            return self.prepare(tokens, adakv, extra_key)
        if self.evicted:
            self.evicted -= 1
            self.contexts.clear()
        text = self.tokenizer.decode(tokens)
        value = text.partition(" is: ")[2].split(".")[0]
        for (namespace, context, _), wish in self.contexts.items():
            if namespace == extra_key and tuple(tokens[: len(context)]) == context and wish == adakv:
                return self.reply(value, len(context), self.describe(wish, len(context)))
        return self.reply(value, 0, None)

    def prepare(self, tokens, wish, namespace):
        assert wish["compress"] and len(tokens) == wish["context_tokens"] + 1
        if self.refusal:
            return self.reply("", 0, {"compressed": False, "prepared": False, "reason": self.refusal})
        self.contexts[namespace, tuple(tokens[:-1]), str(wish)] = wish
        return self.reply("", 0, {**self.describe(wish, len(tokens) - 1), "prepared": True})

    @staticmethod
    def describe(wish, num_tokens):
        settings = {key: wish[key] for key in ("scorer", "allocator", "keep_ratio")}
        slots = int(wish["keep_ratio"] * num_tokens)
        return {
            "compressed": True,
            "logical_tokens": num_tokens,
            "owned_slots": slots,
            "context_id": str(wish),
            **settings,
        }

    @staticmethod
    def reply(text, cached, report):
        info = {"cached_tokens": cached, **({"adakv": report} if report else {})}
        return {"text": text, "meta_info": info}


@pytest.fixture
def rows(tokenizer, data):
    return list(Rows(("niah_single_1",), 3, 700, 0, data).samples(tokenizer))


METHODS = tuple(parse_methods(["keydiff:adakv", "FULL", "snapkv:uniform:alpha=0.1"], [0.5, 0.25]))


def test_methods_are_the_full_cache_once_and_the_others_at_every_ratio():
    assert [(method.name, method.keep_ratio) for method in METHODS] == [
        ("FULL", 1.0),
        ("keydiff:adakv", 0.5),
        ("keydiff:adakv", 0.25),
        ("snapkv:uniform:alpha=0.1", 0.5),
        ("snapkv:uniform:alpha=0.1", 0.25),
    ]
    assert METHODS[4].wish == {"scorer": "snapkv", "allocator": "uniform", "alpha": 0.1, "keep_ratio": 0.25}
    assert len({method.namespace for method in METHODS}) == len(METHODS)


def test_every_method_is_measured_in_its_own_namespace(tokenizer, rows):
    server = FakeServer(tokenizer)
    for method in METHODS:
        (result,) = measure(server, RUN, Job(rows[0], (method,)))
        context = len(rows[0].prompt.context)
        kept = context if method.wish is None else int(method.keep_ratio * context)
        assert (result.score, result.owned_slots) == (100, kept)
        assert result.cached_tokens == (0 if method.wish is None else context)
        assert {key for key, _ in server.calls} == {method.namespace}
        assert [new for _, new in server.calls] == ([128] if method.wish is None else [1, 128])
        server.calls.clear()


def test_what_one_repetition_of_the_context_serves_is_measured_together(tokenizer, rows, tmp_path):
    methods = parse_methods(["kvzip:cross-layer", "keydiff:adakv", "kvzip:adakv:alpha=0"], [0.5, 0.25])
    jobs, server = plan(RUN, rows[:1], methods, tmp_path / "none"), FakeServer(tokenizer)
    assert [len(job.methods) for job in jobs] == [4, 1, 1]
    results = measure(server, RUN, jobs[0])
    assert {(result.method, result.keep_ratio) for result in results} == {
        (method.name, method.keep_ratio) for method in jobs[0].methods
    }
    assert {key for key, _ in server.calls} == {"ruler/kvzip"} and len(server.calls) == 8


def test_an_evicted_context_is_prepared_again_and_a_lost_one_is_no_result(tokenizer, rows):
    job = Job(rows[0], METHODS[1:2])
    (result,) = measure(FakeServer(tokenizer, evicted=2), RUN, job)
    assert result.cached_tokens == len(rows[0].prompt.context)
    with pytest.raises(NotMeasured, match=r"keydiff:adakv/0\.5: expected context .*, got None"):
        measure(FakeServer(tokenizer, evicted=99), RUN, job)


def test_answers_from_another_context_are_no_results(tokenizer, rows):
    server = FakeServer(tokenizer)
    server.describe = lambda wish, count: FakeServer.describe({**wish, "scorer": "random"}, count)
    with pytest.raises(NotMeasured, match="'scorer': 'random'"):
        measure(server, RUN, Job(rows[0], METHODS[1:2]))


def test_a_refusal_says_why(tokenizer, rows):
    with pytest.raises(NotMeasured, match="keep_ratio 0.5 of 30 tokens"):
        measure(FakeServer(tokenizer, refusal="keep_ratio 0.5 of 30 tokens"), RUN, Job(rows[0], METHODS[1:2]))


def test_an_interrupted_run_is_continued_where_it_stopped(tokenizer, rows, tmp_path):
    out, server = tmp_path / "results.jsonl", FakeServer(tokenizer)
    jobs = plan(RUN, rows, METHODS, out)
    assert len(jobs) == 15 and [job.sample.row.index for job in jobs] == [0] * 5 + [1] * 5 + [2] * 5
    run_jobs(jobs[:7], partial(measure, server, RUN), 2, out)
    rest = plan(RUN, rows, METHODS, out)
    assert rest == jobs[7:]
    run_jobs(rest, partial(measure, server, RUN), 2, out)
    assert plan(RUN, rows, METHODS, out) == [] and len(load([out])) == 15
    assert len(plan(Run("other", 0, 700), rows, METHODS, out)) == 15


def test_what_was_measured_before_a_failure_is_kept(tokenizer, rows, tmp_path):
    out, server = tmp_path / "results.jsonl", FakeServer(tokenizer)

    def one(job):
        if job.sample.row.index == 2:
            raise NotMeasured("lost")
        return measure(server, RUN, job)

    with pytest.raises(NotMeasured, match="lost"):
        run_jobs(plan(RUN, rows, METHODS[:1], out), one, 1, out)
    assert len(load([out])) == 2
