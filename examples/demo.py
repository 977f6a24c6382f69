"""The whole path in some minutes: a stock server and ours, one real text, several questions.

Run by `make demo`. Prints what happened, and as its last line one JSON object with the figures.
"""

import argparse
import json
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import local_server
from local_server import Server

TEXT = Path(__file__).parent / "texts" / "declaration_of_independence.txt"
HEAD = "<|im_start|>system\nAnswer in one short sentence.<|im_end|>\n<|im_start|>user\n"
TAIL = "<|im_end|>\n<|im_start|>assistant\n"
QUESTIONS = (
    "Which rights are unalienable according to this text?",
    "Who is accused of injuries and usurpations?",
    "From where do governments derive their just powers?",
    "When was this declaration made?",
)
NEW_TOKENS = 32
KEEP_RATIO = 0.3


def main() -> None:
    """Stock answers first, then ours: exact at keep ratio 1.0, compressed at 0.3."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="folder of the model")
    model = parser.parse_args().model
    document = HEAD + TEXT.read_text(encoding="utf-8") + "\n\nQuestion:"
    with tempfile.TemporaryDirectory() as logs:
        print("1. The stock server answers (no plug-in selected) ...", flush=True)
        with local_server.running(model, Path(logs) / "stock.log") as server:
            stock = [ask(server, document, question) for question in QUESTIONS]
        print("2. Ours, `--enable-adakv`, prepares the same text at keep ratio 1.0 ...", flush=True)
        with local_server.running(model, Path(logs) / "adakv.log", "--enable-adakv") as server:
            prepare(server, document, 1.0)
            exact = [ask(server, document, question) for question in QUESTIONS]
            identical = [a["output_ids"] for a in exact] == [s["output_ids"] for s in stock]
            print(f"   answers identical to the stock server's, token for token: {identical}")
            result = compress_and_ask(server, document)
    print(json.dumps({**result, "keep1_identical": identical}))


def compress_and_ask(server: Server, document: str) -> dict[str, Any]:
    """Compress once, ask several times; returns the figures."""
    server.call("/flush_cache", {})
    server.generate(document + " ?", 1)
    before = server.state()["pool"]
    print(
        f"\n3. Compressing it once, before any question is known, at keep ratio {KEEP_RATIO} ...", flush=True
    )
    report = prepare(server, document, KEEP_RATIO)
    after = server.state()["pool"]
    print(f"   {report['logical_tokens']} tokens now own {report['owned_slots']} token slots,", end=" ")
    print(f"retained attention mass {report['retained_mass']:.3f}")
    show_budgets(report["head_budgets"], layers=(3, 20))
    show_pool(before, after)

    print("\n4. Follow-ups: one streamed, then the others at once", flush=True)
    answers = [ask(server, document, QUESTIONS[0], echo=True)]
    with ThreadPoolExecutor() as pool:
        answers += pool.map(lambda question: ask(server, document, question), QUESTIONS[1:])
    show_answers(answers)
    pool = server.state()["pool"]
    return {
        "context_tokens": report["logical_tokens"],
        "owned_slots": report["owned_slots"],
        "freed_slots": report["freed_slots"],
        "followups": len(answers),
        "followup_cached_tokens": [answer["meta_info"]["cached_tokens"] for answer in answers],
        "leaked_slots": pool["total"] - pool["available"] - pool["evictable"] - pool["protected"],
    }


def prepare(server: Server, document: str, keep_ratio: float) -> dict[str, Any]:
    """Make the document a context; the last token of the prompt, here " ?", is not part of it."""
    answer = server.generate(document + " ?", 1, adakv={"compress": True, "keep_ratio": keep_ratio})
    report: dict[str, Any] = answer["meta_info"]["adakv"]
    return report


def ask(server: Server, document: str, question: str, *, echo: bool = False) -> dict[str, Any]:
    """Stream one greedy answer; adds `question` and `ttft_s`, seconds to the first token."""
    prompt = f"{document} {question}{TAIL}"
    body = {
        "text": prompt,
        "stream": True,
        "sampling_params": {"temperature": 0, "max_new_tokens": NEW_TOKENS},
    }
    request = urllib.request.Request(
        server.url + "/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    started, ttft, shown, last = time.perf_counter(), 0.0, 0, {}
    with urllib.request.urlopen(request, timeout=600) as stream:
        for line in stream:
            if not line.startswith(b"data: {"):
                continue
            ttft = ttft or time.perf_counter() - started
            last = json.loads(line[6:])
            if echo:
                print(last["text"][shown:], end="", flush=True)
                shown = len(last["text"])
    if echo:
        print()
    return {**last, "question": question, "ttft_s": ttft}


def show_budgets(head_budgets: list[list[int]], layers: tuple[int, ...]) -> None:
    """Bars of the tokens that each head keeps."""
    widest = max(max(head_budgets[layer]) for layer in layers)
    for layer in layers:
        print(f"   layer {layer}")
        for head, tokens in enumerate(head_budgets[layer]):
            print(f"     head {head} {'█' * round(40 * tokens / widest):<40} {tokens} tokens")


def show_pool(before: dict[str, int], after: dict[str, int]) -> None:
    """The pool in token slots, with the text cached exactly and compressed."""
    print(f"   {'pool (token slots)':<24}{'before':>8}{'after':>8}")
    for name in ("available", "evictable", "total"):
        print(f"   {name:<24}{before[name]:>8}{after[name]:>8}")


def show_answers(answers: list[dict[str, Any]]) -> None:
    """One line per follow-up."""
    print(f"\n   {'question':<54}{'answer':<46}{'cached':>7}{'TTFT':>9}")
    for answer in answers:
        text = " ".join(answer["text"].split())[:43]
        cached = answer["meta_info"]["cached_tokens"]
        print(f"   {answer['question']:<54}{text:<46}{cached:>7}{answer['ttft_s'] * 1000:>6.0f} ms")


if __name__ == "__main__":
    main()
