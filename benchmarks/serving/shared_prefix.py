"""Questions on a few long documents: the stock server and ours in turn, same GPU, same flags, same token ids.

The radix cache is on in both, and every document is cached before the clock starts. Ours is also measured on
documents that are cached exactly, as any request without a context is served. Prints one JSON line per figure
and appends it to --out. With --short, one concurrency and one keep ratio.

Run: python benchmarks/serving/shared_prefix.py --model MODEL [--out FILE] [-- SERVER OPTIONS]
"""

import argparse
import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1] / "examples")]

import local_server
from common import record
from load import closed_load, open_load
from local_server import Server
from step_profile import profile_decode
from traffic import OURS, STOCK, cache, command_line, questions, random_documents, tokens

PROFILED = 0.2


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--rates", type=float, nargs="*", default=[4, 8, 16], help="requests per second")
    parser.add_argument(
        "--stream-intervals", type=int, nargs="+", default=[1], help="tokens that the server sends at a time"
    )
    parser.add_argument("--keep-ratios", type=float, nargs="+", default=[0.1, 0.2, 0.5, 1.0])
    parser.add_argument("--servers", nargs="+", choices=["stock", "adakv"], default=["stock", "adakv"])
    parser.add_argument("--no-plain", action="store_true", help="leave out our server without contexts")
    parser.add_argument(
        "--capacity", type=int, default=0, help="prepare this many documents and ask each once"
    )
    parser.add_argument("--profile", type=Path, help="write traces of decode steps at keep ratio 0.2 here")
    parser.add_argument("--short", action="store_true")
    options = command_line(parser)
    if options.short:
        options.concurrency, options.rates = [64], [8]
        options.keep_ratios, options.no_plain = [0.2], True
    return options


def measure(
    server: Server, options: argparse.Namespace, documents: list[list[int]], what: dict[str, Any]
) -> None:
    """All concurrencies and rates, on documents that are cached."""
    length = options.question_tokens
    closed_load(server.port, questions(documents, 8, length, 99), 8, 8)  # warm up
    for interval, concurrency in itertools.product(options.stream_intervals, options.concurrency):
        prompts = questions(documents, max(16, 4 * concurrency), length, concurrency)
        figures = closed_load(server.port, prompts, concurrency, options.new_tokens, interval)
        load = {"concurrency": concurrency, "stream_interval": interval}
        record(options.out, {**what, **load, **figures})
    for rate in options.rates:
        prompts = questions(documents, max(16, int(8 * rate)), length, 500 + int(rate))
        figures = open_load(server.port, prompts, rate, options.new_tokens)
        record(options.out, {**what, "requests_per_s": rate, **figures})


def run_stock(options: argparse.Namespace, documents: list[list[int]], log: Path) -> None:
    """The baseline."""
    with local_server.running(options.model, log, *STOCK, *options.server) as server:
        cache(server, [tokens(options.document_tokens, 777)])
        server.call("/flush_cache", {})
        seconds, _ = cache(server, documents)
        what = {"server": "stock", "keep_ratio": None, "prefill_s": round(seconds, 3)}
        measure(server, options, documents, what)


def run_ours(options: argparse.Namespace, documents: list[list[int]], log: Path) -> None:
    """Every keep ratio on the same server."""
    with local_server.running(options.model, log, *OURS, *options.server) as server:
        cache(server, [tokens(options.document_tokens, 777)], keep_ratio=PROFILED)
        if not options.no_plain:
            server.call("/flush_cache", {})
            seconds, _ = cache(server, documents)
            what = {"server": "adakv", "keep_ratio": None, "prefill_s": round(seconds, 3)}
            measure(server, options, documents, what)
        for ratio in options.keep_ratios:
            run_ratio(server, options, documents, ratio)
        if options.capacity:
            capacity(server, options)


def run_ratio(server: Server, options: argparse.Namespace, documents: list[list[int]], ratio: float) -> None:
    """Compress all documents, then measure. `cached_compress_s`: a request on a cached document that compresses it."""
    server.call("/flush_cache", {})
    cache(server, documents[:1])
    again, _ = cache(server, documents[:1])
    compressing, _ = cache(server, documents[:1], keep_ratio=ratio)
    seconds, reports = cache(server, documents, keep_ratio=ratio)
    what = {
        "server": "adakv",
        "keep_ratio": ratio,
        "prefill_s": round(seconds, 3),
        "owned_slots": sum(report["owned_slots"] for report in reports),
        "cached_request_s": round(again, 4),
        "cached_compress_s": round(compressing, 4),
    }
    measure(server, options, documents, what)
    if options.profile and ratio == PROFILED:
        prompts = questions(documents, options.concurrency[-1], options.question_tokens, 5)
        profile_decode(server, prompts, options.profile, options.out)


def capacity(server: Server, options: argparse.Namespace) -> None:
    """How many documents stay resident at keep ratio 0.2: prepare them all, then ask each one once."""
    server.call("/flush_cache", {})
    documents = [tokens(options.document_tokens, 5000 + i) for i in range(options.capacity)]
    cache(server, documents, keep_ratio=0.2)
    resident, pool = len(server.state()["contexts"]), server.state()["pool"]["total"]
    prompts = questions(documents, len(documents), options.question_tokens, 7)
    figures = closed_load(server.port, prompts, 16, 4)
    hits = figures["fewest_cached_tokens"] >= options.document_tokens
    what = {"documents": len(documents), "resident": resident, "all_follow_ups_hit": hits}
    record(options.out, {**what, "pool_tokens": pool, "plain_documents": pool // options.document_tokens})


def main() -> None:
    """Both servers, one after the other."""
    options = parse()
    documents = random_documents(options)
    with tempfile.TemporaryDirectory() as logs:
        if "stock" in options.servers:
            run_stock(options, documents, Path(logs) / "stock.log")
        if "adakv" in options.servers:
            run_ours(options, documents, Path(logs) / "adakv.log")


if __name__ == "__main__":
    main()
