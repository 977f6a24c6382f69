"""RULER through a server with adakv: every context is compressed once, then asked a question it does not hold.

One JSON line per row, method and keep ratio is appended to --out; what the file holds already is left out. Then
prints a table. A method is FULL, or scorer:allocator, or scorer:allocator:alpha=0.1 with other request options.
Every method and keep ratio has a cache namespace of its own, and no answer counts whose context was another.

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
from ruler.generate import Rows, Sample
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
        """Extra key of all its requests."""
        return f"ruler/{self.name}/{self.keep_ratio}"


@dataclass(frozen=True)
class Job:
    """One row by one method."""

    sample: Sample
    method: Method


def parse_methods(names: list[str], keep_ratios: list[float]) -> list[Method]:
    """FULL first: once; the others at every ratio."""
    methods = [Method(FULL, 1.0)] if FULL in names else []
    for name in (name for name in names if name != FULL):
        scorer, allocator, *others = name.split(":")
        pairs = (other.split("=") for other in others)
        wish = {"scorer": scorer, "allocator": allocator, **{key: float(value) for key, value in pairs}}
        methods += [Method(name, ratio, {**wish, "keep_ratio": ratio}) for ratio in keep_ratios]
    return methods


def measure(server: Server, run: Run, job: Job) -> Result:
    """Prepare the context if the method has one, then ask."""
    prompt, method, row = job.sample.prompt, job.method, job.sample.row
    started = time.perf_counter()
    for _ in range(ATTEMPTS):
        if (problem := _prepare(server, job)) is not None:
            continue
        answer = server.generate(
            prompt.context + prompt.question, row.max_new_tokens, extra_key=method.namespace
        )
        cached, report = answer["meta_info"]["cached_tokens"], answer["meta_info"].get("adakv")
        if (problem := _problem(job, cached, report)) is None:
            break
    else:
        raise NotMeasured(f"{row.task}, row {row.index}, {method.namespace}: {problem}")
    return run.result(
        job.sample,
        method.name,
        method.keep_ratio,
        answer["text"],
        cached_tokens=cached,
        owned_slots=report["owned_slots"] if report else len(prompt.context),
        seconds=round(time.perf_counter() - started, 3),
    )


def _prepare(server: Server, job: Job) -> str | None:
    """Compress the context; the one token behind it is the question's first. Returns why that failed."""
    prompt, method = job.sample.prompt, job.method
    if method.wish is None:
        return None
    wish = {"compress": True, "context_tokens": len(prompt.context), **method.wish}
    beginning = prompt.context + prompt.question[:1]
    answer = server.generate(beginning, 1, adakv=wish, extra_key=method.namespace)
    report = answer["meta_info"].get("adakv") or {"reason": "the server runs without adakv"}
    reason: str | None = report.get("reason")
    return reason


def _problem(job: Job, cached: int, report: dict[str, Any] | None) -> str | None:
    """What is wrong with the context that a question was answered from."""
    expected, context = job.method.wish, len(job.sample.prompt.context)
    if expected is None:
        return None if report is None else f"expected the exact cache, got {report}"
    if report is None or not report["compressed"]:
        return f"expected a compressed context, got {report}"
    got = {key: report[key] for key in expected if key in report}
    if any(expected[key] != value for key, value in got.items()) or report["logical_tokens"] != context:
        return f"expected {expected} on {context} tokens, got {got} on {report['logical_tokens']}"
    return None if cached >= context else f"expected {context} cached tokens, got {cached}"


def run_jobs(jobs: list[Job], one: Callable[[Job], Result], concurrency: int, out: Path) -> None:
    """Many at once; each result is saved when it is there."""
    started = time.monotonic()
    with ThreadPoolExecutor(concurrency) as pool:
        waiting = [pool.submit(one, job) for job in jobs]
        try:
            for done, future in enumerate(as_completed(waiting), 1):
                save(out, future.result())
                seconds = time.monotonic() - started
                print(f"\r{done} of {len(jobs)}, {seconds:.0f} s", end="", file=sys.stderr, flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    print(file=sys.stderr)


def plan(run: Run, samples: list[Sample], methods: list[Method], out: Path) -> list[Job]:
    """Row by row, all methods of one row together; without what the file holds."""
    done = known(out)
    return [
        Job(sample, method)
        for sample in samples
        for method in methods
        if run.key(sample, method.name, method.keep_ratio) not in done
    ]


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
    parser.add_argument("--out", type=Path, required=True)
    return parse_before_server_options(parser)


def main() -> None:
    """Rows first, so that nothing is missing when the server is up."""
    from common import environment
    from transformers import AutoTokenizer

    options = parse()
    rows, run = Rows.of(options), Run(Path(options.model).name, options.seed, options.length)
    methods = parse_methods(options.methods, options.keep_ratios)
    samples = list(rows.samples(AutoTokenizer.from_pretrained(options.model)))
    jobs = plan(run, samples, methods, options.out)
    if jobs:
        with serving(options) as server:
            settings = os.environ.get(CONFIG_VARIABLE) if not options.url else None
            append(options.out, {"run": {**environment(), "settings": settings}})
            run_jobs(jobs, partial(measure, server, run), options.concurrency, options.out)
    print(report(load([options.out])))


if __name__ == "__main__":
    main()
