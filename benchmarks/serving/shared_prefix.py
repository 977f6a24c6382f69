"""Questions on a few long documents: the stock server and ours in turn, same GPU, same flags, same token ids.

The radix cache is on in both, and every document is cached before the clock starts. Prints one JSON line per
figure and appends it to --out. With --short, one concurrency and one keep ratio.

Run: python benchmarks/serving/shared_prefix.py --model MODEL [--out FILE] [-- SERVER OPTIONS]
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1] / "examples")]

import local_server
from common import record
from load import closed_load
from local_server import Server

STOCK = ("--attention-backend", "flashinfer")
OURS = ("--enable-adakv",)


def parse() -> argparse.Namespace:
    """Command line; what follows `--` goes to both servers."""
    own, _, server = (sys.argv[1:], "", []) if "--" not in sys.argv else _split(sys.argv[1:])
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--document-tokens", type=int, default=32768)
    parser.add_argument("--question-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--keep-ratios", type=float, nargs="+", default=[0.1, 0.2, 0.5, 1.0])
    parser.add_argument("--servers", nargs="+", choices=["stock", "adakv"], default=["stock", "adakv"])
    parser.add_argument(
        "--capacity", type=int, default=0, help="prepare this many documents and ask each once"
    )
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(own)
    if options.short:
        options.concurrency, options.keep_ratios = [64], [0.2]
    options.server = server
    return options


def _split(arguments: list[str]) -> tuple[list[str], str, list[str]]:
    at = arguments.index("--")
    return arguments[:at], "--", arguments[at + 1 :]


def tokens(count: int, seed: int) -> list[int]:
    """Random token ids, the same for the same seed."""
    source = random.Random(seed)
    return [source.randrange(1000, 30000) for _ in range(count)]


def questions(
    options: argparse.Namespace, documents: list[list[int]], count: int, seed: int
) -> list[list[int]]:
    """Prompts that go round the documents, each with a question of its own."""
    return [
        documents[i % len(documents)] + tokens(options.question_tokens, seed * 1_000_000 + i)
        for i in range(count)
    ]


def prefill(server: Server, documents: list[list[int]], **wish: Any) -> tuple[float, list[dict[str, Any]]]:
    """Cache every document, compressed if a wish says so; seconds per document, and the reports."""
    started, reports = time.perf_counter(), []
    for document in documents:
        answer = server.generate([*document, 1], 1, adakv={"compress": True, **wish} if wish else None)
        reports.append(answer["meta_info"].get("adakv", {}))
    return (time.perf_counter() - started) / len(documents), reports


def measure(
    server: Server, options: argparse.Namespace, documents: list[list[int]], what: dict[str, Any]
) -> None:
    """All concurrencies on documents that are cached."""
    closed_load(server.port, questions(options, documents, 8, 99), 8, 8)  # warm up
    for concurrency in options.concurrency:
        prompts = questions(options, documents, max(8, 2 * concurrency), concurrency)
        figures = closed_load(server.port, prompts, concurrency, options.new_tokens)
        figures.pop("output_ids")
        record(options.out, {**what, "concurrency": concurrency, **figures})


def run_stock(options: argparse.Namespace, documents: list[list[int]], log: Path) -> None:
    """The baseline."""
    with local_server.running(options.model, log, *STOCK, *options.server) as server:
        prefill(server, [tokens(options.document_tokens, 777)])
        server.call("/flush_cache", {})
        seconds, _ = prefill(server, documents)
        what = {"server": "stock", "keep_ratio": None, "prefill_s": round(seconds, 3)}
        measure(server, options, documents, what)


def run_ours(options: argparse.Namespace, documents: list[list[int]], log: Path) -> None:
    """Every keep ratio on the same server."""
    with local_server.running(options.model, log, *OURS, *options.server) as server:
        prefill(server, [tokens(options.document_tokens, 777)], keep_ratio=0.2)
        for ratio in options.keep_ratios:
            server.call("/flush_cache", {})
            plain, _ = prefill(server, documents[:1])
            again, _ = prefill(
                server, documents[:1], keep_ratio=ratio
            )  # cached: the window and the compression
            seconds, reports = prefill(server, documents, keep_ratio=ratio)
            slots = sum(report["owned_slots"] for report in reports)
            what = {
                "server": "adakv",
                "keep_ratio": ratio,
                "prefill_s": round(seconds, 3),
                "owned_slots": slots,
            }
            what |= {"plain_prefill_s": round(plain, 3), "compress_s": round(again, 3)}
            measure(server, options, documents, what)
        if options.capacity:
            capacity(server, options)


def capacity(server: Server, options: argparse.Namespace) -> None:
    """How many documents stay resident at keep ratio 0.2: prepare them all, then ask each one once."""
    server.call("/flush_cache", {})
    documents = [tokens(options.document_tokens, 5000 + i) for i in range(options.capacity)]
    prefill(server, documents, keep_ratio=0.2)
    resident = len(server.state()["contexts"])
    figures = closed_load(server.port, questions(options, documents, len(documents), 7), 16, 4)
    hits = figures["cached_tokens"] >= options.document_tokens
    record(options.out, {"documents": len(documents), "resident": resident, "median_follow_up_hits": hits})


def main() -> None:
    """Both servers, one after the other."""
    options = parse()
    documents = [tokens(options.document_tokens, 1000 + i) for i in range(options.documents)]
    with tempfile.TemporaryDirectory() as logs:
        if "stock" in options.servers:
            run_stock(options, documents, Path(logs) / "stock.log")
        if "adakv" in options.servers:
            run_ours(options, documents, Path(logs) / "adakv.log")


if __name__ == "__main__":
    main()
