"""The same without HTTP: sglang.Engine prepares a text once and answers questions on it.

Run: python examples/offline_engine.py --model MODEL [--text FILE]
"""

import argparse
import json
import os
from pathlib import Path

import local_server

import adakv_sglang

TEXT = Path(__file__).parent / "texts" / "declaration_of_independence.txt"


def main() -> None:
    """Prepare, then ask; prints one JSON line per answer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", type=Path, default=TEXT)
    options = parser.parse_args()
    device = {} if local_server.has_gpu() else {"device": "cpu", "dtype": "float32", "max_total_tokens": 8192}
    if device:
        os.environ["SGLANG_USE_CPU_ENGINE"] = "1"

    import sglang

    engine = sglang.Engine(model_path=options.model, **adakv_sglang.enable(keep_ratio=0.3), **device)
    try:
        text = options.text.read_text(encoding="utf-8")
        wish = {"adakv": {"compress": True, "pin": True}}  # pin: other prompts do not push it out
        prepared = engine.generate(text, {"max_new_tokens": 1, "custom_params": wish})
        print(json.dumps(prepared["meta_info"]["adakv"]))
        for question in ("Who is accused in this text?", "Which rights are unalienable?"):
            prompt = f"{text}\n\nQuestion: {question}\nAnswer:"
            answer = engine.generate(prompt, {"temperature": 0, "max_new_tokens": 16})
            used = {"answer": answer["text"], "cached_tokens": answer["meta_info"]["cached_tokens"]}
            print(json.dumps({**used, **answer["meta_info"]["adakv"]}))
    finally:
        engine.shutdown()


if __name__ == "__main__":
    main()
