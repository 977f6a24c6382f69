"""RULER through a server with adakv: every context is compressed once, then asked a question it does not hold.

One JSON line per row, method and keep ratio is appended to --out; what the file holds already is left out. Then
prints a table. A method is FULL, or scorer:allocator, or scorer:allocator:alpha=0.1 with other request options.
Every method and keep ratio has a cache namespace of its own, except those that read the same repeated context; no
answer counts whose context was another.

Run: python benchmarks/quality/ruler/run.py --model MODEL --data FOLDER --methods FULL keydiff:adakv
     --keep-ratios 0.5 0.25 --out FILE.jsonl [--url URL] [-- SERVER OPTIONS]
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / folder) for folder in ("benchmarks/quality", "benchmarks", "examples")]

import local_server
from local_server import Server

from adakv_sglang.config import CONFIG_VARIABLE
from adakv_sglang.core.scorers import SCORERS
from ruler.generate import Rows, Sample, shard
from ruler.results import Result, Run, append, known, load, save
from ruler.summary import report

FULL: Final = "FULL"
ATTEMPTS: Final = 3  # a context may be evicted before its question comes


class NotMeasured(RuntimeError):
    """A question was not answered from the context that was meant."""


class RemoteServer(Server):
    """A server that somebody else started."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")


@dataclass(frozen=True)
class Method:
    """One way to compress. wish: request options beside the keep ratio; none for the exact cache."""

    name: str
    keep_ratio: float
    wish: dict[str, Any] | None = field(default=None, hash=False)

    @property
    def namespace(self) -> str:
        """Extra key of all its requests: its own, or one for all methods that read the same repeated context."""
        if self.wish is not None and SCORERS[self.wish["scorer"]].needs == "reconstruction":
            return f"ruler/{self.wish['scorer']}"
        return f"ruler/{self.name}/{self.keep_ratio}"


@dataclass(frozen=True)
class Job:
    """One row by the methods of one namespace, at the same time."""

    sample: Sample
    methods: tuple[Method, ...]


def parse_methods(names: list[str], keep_ratios: list[float]) -> list[Method]:
    """FULL first: once; the others at every ratio."""
    methods = [Method(FULL, 1.0)] if FULL in names else []
    for name in (name for name in names if name != FULL):
        scorer, allocator, *others = name.split(":")
        pairs = (other.split("=") for other in others)
        wish = {"scorer": scorer, "allocator": allocator, **{key: float(value) for key, value in pairs}}
        methods += [Method(name, ratio, {**wish, "keep_ratio": ratio}) for ratio in keep_ratios]
    return methods


def measure(server: Server, run: Run, job: Job) -> list[Result]:
    """Prepare the contexts of the methods that have one, then ask each."""
    with ThreadPoolExecutor(len(job.methods)) as pool:
        for _ in range(ATTEMPTS):
            started = time.perf_counter()
            made = list(pool.map(partial(_prepare, server, job.sample), job.methods))
            answers = list(pool.map(partial(_ask, server, job.sample), job.methods))
            seconds = round((time.perf_counter() - started) / len(job.methods), 3)
            found = list(map(_problem, [job.sample] * len(made), job.methods, made, answers))
            problem = next((problem for problem in found if problem is not None), None)
            if problem is None:
                pairs = zip(job.methods, answers, strict=True)
                return [_result(run, job.sample, method, answer, seconds) for method, answer in pairs]
    row = job.sample.row
    raise NotMeasured(f"{row.task}, row {row.index}, {job.methods[0].namespace}: {problem}")


def _prepare(server: Server, sample: Sample, method: Method) -> dict[str, Any]:
    """Compress the context; the one token behind it is the question's first. Returns the report, {} for FULL."""
    if method.wish is None:
        return {}
    prompt = sample.prompt
    beginning, wish = prompt.context + prompt.question[:1], _wish(sample, method)
    answer = server.generate(beginning, 1, adakv=wish, extra_key=method.namespace)
    report: dict[str, Any] = answer["meta_info"].get("adakv") or {"reason": "the server runs without adakv"}
    return report


def _ask(server: Server, sample: Sample, method: Method) -> dict[str, Any]:
    """The question behind the context; it names its settings, since its namespace may hold others too."""
    prompt = sample.prompt
    return server.generate(
        prompt.context + prompt.question,
        sample.row.max_new_tokens,
        adakv=_wish(sample, method),
        extra_key=method.namespace,
    )


def _wish(sample: Sample, method: Method) -> dict[str, Any] | None:
    if method.wish is None:
        return None
    return {"compress": True, "context_tokens": len(sample.prompt.context), **method.wish}


def _result(run: Run, sample: Sample, method: Method, answer: dict[str, Any], seconds: float) -> Result:
    cached, report = answer["meta_info"]["cached_tokens"], answer["meta_info"].get("adakv")
    return run.result(
        sample,
        method.name,
        method.keep_ratio,
        answer["text"],
        cached_tokens=cached,
        owned_slots=report["owned_slots"] if report else len(sample.prompt.context),
        seconds=seconds,
    )


def _problem(sample: Sample, method: Method, made: dict[str, Any], answer: dict[str, Any]) -> str | None:
    """What is wrong with the context that a question was answered from."""
    cached, report = answer["meta_info"]["cached_tokens"], answer["meta_info"].get("adakv")
    expected, context = method.wish, len(sample.prompt.context)
    if expected is None:
        return None if report is None else f"expected the exact cache, got {report}"
    if made.get("reason") is not None:
        return str(made["reason"])
    if report is None or not report["compressed"] or report["context_id"] != made["context_id"]:
        return f"expected context {made['context_id']}, got {report}"
    got = {key: report[key] for key in expected if key in report}
    if any(expected[key] != value for key, value in got.items()) or report["logical_tokens"] != context:
        return f"expected {expected} on {context} tokens, got {got} on {report['logical_tokens']}"
    return None if cached >= context else f"expected {context} cached tokens, got {cached}"


def run_jobs(jobs: list[Job], one: Callable[[Job], list[Result]], concurrency: int, out: Path) -> None:
    """Many at once; each result is saved when it is there."""
    started = time.monotonic()
    with ThreadPoolExecutor(concurrency) as pool:
        waiting = [pool.submit(one, job) for job in jobs]
        try:
            for done, future in enumerate(as_completed(waiting), 1):
                for result in future.result():
                    save(out, result)
                seconds = time.monotonic() - started
                print(f"\r{done} of {len(jobs)}, {seconds:.0f} s", end="", file=sys.stderr, flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    print(file=sys.stderr)


def plan(run: Run, samples: list[Sample], methods: list[Method], out: Path) -> list[Job]:
    """Row by row, all methods of one row together; without what the file holds."""
    done, jobs = known(out), []
    for sample in samples:
        groups: dict[str, list[Method]] = {}
        for method in methods:
            if run.key(sample, method.name, method.keep_ratio) not in done:
                groups.setdefault(method.namespace, []).append(method)
        jobs += [Job(sample, tuple(group)) for group in groups.values()]
    return jobs


@contextmanager
def serving(options: argparse.Namespace) -> Iterator[Server]:
    """The server at --url, or one of our own for the length of a `with` block."""
    if options.url:
        yield RemoteServer(options.url)
        return
    with tempfile.TemporaryDirectory() as logs:
        log = Path(logs) / "server.log"
        with local_server.running(options.model, log, "--enable-adakv", *options.server) as server:
            yield server


def parse() -> argparse.Namespace:
    """Command line; what follows `--` goes to the server."""
    from common import parse_before_server_options

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", required=True, help="also where the tokenizer comes from")
    parser.add_argument("--url", help="of a running server; otherwise one is started")
    Rows.add_options(parser)
    parser.add_argument("--methods", nargs="+", default=[FULL, "keydiff:adakv"])
    parser.add_argument("--keep-ratios", type=float, nargs="+", default=[0.5, 0.25, 0.1])
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--shard", default="0/1", help="I/N: every N-th row from the I-th on")
    parser.add_argument("--out", type=Path, required=True)
    return parse_before_server_options(parser)


def main() -> None:
    """Rows first, so that nothing is missing when the server is up."""
    from common import environment
    from transformers import AutoTokenizer

    options = parse()
    rows, run = Rows.of(options), Run(Path(options.model).name, options.seed, options.length)
    methods = parse_methods(options.methods, options.keep_ratios)
    samples = shard(list(rows.samples(AutoTokenizer.from_pretrained(options.model))), options.shard)
    jobs = plan(run, samples, methods, options.out)
    if jobs:
        with serving(options) as server:
            settings = os.environ.get(CONFIG_VARIABLE) if not options.url else None
            append(options.out, {"run": {**environment(), "settings": settings}})
            run_jobs(jobs, partial(measure, server, run), options.concurrency, options.out)
    print(report(load([options.out])))


if __name__ == "__main__":
    main()
