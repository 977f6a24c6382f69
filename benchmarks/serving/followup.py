"""TTFT of single follow-ups on one server: documents cached exactly and compressed, in turn.

Both kinds are asked on the same server a moment apart, so that neither the machine nor the server's settings
differ. With --profile, the server traces a few requests of each kind.

Run: python benchmarks/serving/followup.py --model MODEL [--out FILE] [-- SERVER OPTIONS]
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1] / "examples")]

import local_server
from common import record
from load import body_of, stream
from local_server import Server
from traffic import OURS, cache, command_line, questions, random_documents, tokens

EXACT = {"extra_key": "exact"}  # a namespace without contexts


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=48)
    parser.add_argument("--answer-tokens", type=int, default=1)
    parser.add_argument("--keep-ratio", type=float, default=0.2)
    parser.add_argument("--profile", type=Path, help="write traces of five requests of each kind here")
    return command_line(parser)


def ask(
    server: Server, prompts: list[list[int]], wish: dict[str, str], count: int = 1
) -> list[tuple[float, int]]:
    """One at a time: milliseconds to the first of `count` tokens, and how many tokens were cached."""
    samples = [stream(server.port, body_of(prompt, count, **wish), count) for prompt in prompts]
    return [(sample.ttft_s * 1000, sample.cached) for sample in samples]


def compare(server: Server, options: argparse.Namespace, documents: list[list[int]]) -> None:
    """The same questions in both namespaces, in turn."""
    found: dict[str, list[tuple[float, int]]] = {"exact": [], "compressed": []}
    for prompt in questions(documents, options.repeats + 4, options.question_tokens, 3):
        found["exact"] += ask(server, [prompt], EXACT, options.answer_tokens)
        found["compressed"] += ask(server, [prompt], {}, options.answer_tokens)
    figures = {kind: [ttft for ttft, _ in samples[4:]] for kind, samples in found.items()}
    cached = {kind: min(cached for _, cached in samples) for kind, samples in found.items()}
    pairs = zip(figures["exact"], figures["compressed"], strict=True)
    record(
        options.out,
        {
            "keep_ratio": options.keep_ratio,
            "answer_tokens": options.answer_tokens,
            "ttft_ms": {kind: round(median(taken), 2) for kind, taken in figures.items()},
            "difference_ms": round(median(ours - exact for exact, ours in pairs), 2),
            "fewest_cached_tokens": cached,
        },
    )


def trace(server: Server, options: argparse.Namespace, documents: list[list[int]]) -> None:
    """Traces of a few requests."""
    for seed, (kind, wish) in enumerate({"exact": EXACT, "compressed": {}}.items()):
        folder = options.profile / kind
        folder.mkdir(parents=True, exist_ok=True)
        wanted = {"output_dir": str(folder), "activities": ["CPU", "GPU"], "with_stack": True}
        server.call("/start_profile", wanted)
        ask(server, questions(documents, 5, options.question_tokens, 60 + seed), wish)
        server.call("/stop_profile", {})


def main() -> None:
    """One server."""
    options = parse()
    documents = random_documents(options)
    with (
        tempfile.TemporaryDirectory() as logs,
        local_server.running(options.model, Path(logs) / "server.log", *OURS, *options.server) as server,
    ):
        cache(server, [tokens(options.document_tokens, 777)], keep_ratio=options.keep_ratio)
        server.call("/flush_cache", {})
        for document in documents:
            stream(server.port, body_of([*document, 1], 1, **EXACT), 1)
        cache(server, documents, keep_ratio=options.keep_ratio)
        compare(server, options, documents)
        if options.profile:
            trace(server, options, documents)


if __name__ == "__main__":
    main()
