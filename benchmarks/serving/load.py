"""A closed load of streamed requests over HTTP, and what each of them took."""

import http.client
import json
import threading
import time
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Sample:
    """ttft_s: request sent to first token. tpot_s: mean time between tokens after it. cached: tokens found cached."""

    ttft_s: float
    tpot_s: float
    tokens: int
    cached: int


def stream(port: int, prompt: list[int], new_tokens: int) -> Sample:
    """One greedy request of fixed length."""
    sampling = {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True}
    body = json.dumps({"input_ids": prompt, "stream": True, "sampling_params": sampling})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    started, first, last = time.perf_counter(), 0.0, b""
    connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
    for line in connection.getresponse():
        if line.startswith(b"data: {"):
            first, last = first or time.perf_counter(), line
    ended = time.perf_counter()
    connection.close()
    answer = json.loads(last[6:])
    tpot = (ended - first) / max(1, new_tokens - 1)
    return Sample(first - started, tpot, new_tokens, answer["meta_info"]["cached_tokens"])


def closed_load(port: int, prompts: list[list[int]], concurrency: int, new_tokens: int) -> dict[str, Any]:
    """All prompts, `concurrency` at a time; medians over the requests.

    output_tokens_per_s: from the first request sent to the last token, prefill included.
    decode_tokens_per_s: what `concurrency` requests get between tokens, concurrency / TPOT.
    """
    waiting, samples, lock = list(enumerate(prompts)), {}, threading.Lock()

    def worker() -> None:
        while True:
            with lock:
                if not waiting:
                    return
                index, prompt = waiting.pop(0)
            samples[index] = stream(port, prompt, new_tokens)

    threads = [threading.Thread(target=worker) for _ in range(concurrency)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - started
    taken = [samples[i] for i in range(len(prompts))]
    tpot = median(s.tpot_s for s in taken)
    return {
        "requests": len(taken),
        "ttft_ms": round(median(s.ttft_s for s in taken) * 1000, 1),
        "tpot_ms": round(tpot * 1000, 3),
        "output_tokens_per_s": round(sum(s.tokens for s in taken) / elapsed, 1),
        "decode_tokens_per_s": round(concurrency / tpot, 1),
        "cached_tokens": round(median(s.cached for s in taken)),
        "fewest_cached_tokens": min(s.cached for s in taken),
    }
