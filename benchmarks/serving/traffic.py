"""Documents, questions and command lines that the serving benchmarks share."""

import argparse
import random
import time
from pathlib import Path
from statistics import median
from typing import Any

from common import parse_before_server_options
from local_server import Server, has_gpu

STOCK = ("--attention-backend", "flashinfer") if has_gpu() else ()
OURS = ("--enable-adakv",)


def command_line(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse; what follows `--` goes to the servers, as `server`."""
    parser.add_argument("--model", required=True)
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--document-tokens", type=int, default=32768)
    parser.add_argument("--question-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, help="append JSON lines to this file")
    return parse_before_server_options(parser)


def tokens(count: int, seed: int) -> list[int]:
    """Random token ids, the same for the same seed."""
    source = random.Random(seed)
    return [source.randrange(1000, 30000) for _ in range(count)]


def random_documents(options: argparse.Namespace) -> list[list[int]]:
    """As many and as long as the command line says."""
    return [tokens(options.document_tokens, 1000 + i) for i in range(options.documents)]


def questions(documents: list[list[int]], count: int, length: int, seed: int) -> list[list[int]]:
    """Prompts that go round the documents, each with a question of its own."""
    return [documents[i % len(documents)] + tokens(length, seed * 1_000_000 + i) for i in range(count)]


def cache(server: Server, documents: list[list[int]], **wish: Any) -> tuple[float, list[dict[str, Any]]]:
    """Cache every document, compressed if a wish says so; median seconds per document, and the reports."""
    seconds, reports = [], []
    for document in documents:
        started = time.perf_counter()
        answer = server.generate([*document, 1], 1, adakv={"compress": True, **wish} if wish else None)
        seconds.append(time.perf_counter() - started)
        reports.append(answer["meta_info"].get("adakv", {}))
    return median(seconds), reports
