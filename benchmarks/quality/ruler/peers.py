"""The same rows and token ids through kvpress and transformers, in the same JSON lines as run.py's.

kvpress' own pipeline compresses and answers; methods are FULL, scorer:uniform, scorer:adakv (AdaKVPress around the
scorer), and kvzip:cross-layer or kvzip:adakv, its ranking over all layers or in each. In the file their names begin
with kvpress/. Slow: start it several times with --shard 0/4, 1/4, ... and the same --out.

Run: python benchmarks/quality/ruler/peers.py --model FOLDER --data FOLDER --methods FULL keydiff:adakv
     --keep-ratios 0.5 0.25 --out FILE.jsonl [--shard I/N]
"""

import argparse
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / folder) for folder in ("benchmarks/quality", "benchmarks")]

import kvpress
import torch
from common import environment
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from ruler.generate import Rows, Sample, shard
from ruler.results import Key, Run, append, known, save

PREFIX: Final = "kvpress/"
NO_MASK: Final = (
    "Could not find fake keys"  # kvpress cannot always hide tokens of single heads; the row is left out
)
# With the options of kvpress' own evaluation; each takes the share to remove.
SCORERS: Final[dict[str, Callable[[float], Any]]] = {
    "keydiff": kvpress.KeyDiffPress,
    "snapkv": kvpress.SnapKVPress,
    "expected-attention": lambda removed: kvpress.ExpectedAttentionPress(removed, epsilon=1e-2),
    "knorm": kvpress.KnormPress,
    "lagkv": kvpress.LagKVPress,
    "streaming": kvpress.StreamingLLMPress,
    "random": lambda removed: kvpress.RandomPress(removed, seed=0),
}


def adaptive(make: Callable[[float], Any]) -> Callable[[float], Any]:
    """The scorer's ranking over all heads of a layer."""
    return lambda removed: kvpress.AdaKVPress(make(removed))


PRESSES: Final[dict[str, Callable[[float], Any]]] = {
    **{f"{name}:uniform": make for name, make in SCORERS.items()},
    **{f"{name}:adakv": adaptive(make) for name, make in SCORERS.items()},
    "kvzip:cross-layer": kvpress.KVzipPress,
    "kvzip:adakv": lambda removed: kvpress.KVzipPress(removed, layerwise=True),
    "kvzip-plus:cross-layer": lambda removed: kvpress.KVzipPress(removed, kvzip_plus_normalization=True),
}


def with_positions(_model: Any, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Before a prefill: the positions that kvpress 0.5.5 reads and transformers 5 no longer passes by itself."""
    ids, cache = options.get("input_ids"), options.get("past_key_values")
    if ids is not None and cache is not None and cache.get_seq_length() == 0:
        options = {**options, "cache_position": torch.arange(ids.shape[1], device=ids.device)}
    return arguments, options


class Peer:
    """A model in kvpress' pipeline."""

    def __init__(self, folder: str) -> None:
        cuda = torch.cuda.is_available()
        dtype = torch.bfloat16 if cuda else torch.float32
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
        self.model = model.eval().to("cuda" if cuda else "cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model.model.register_forward_pre_hook(with_positions, with_kwargs=True)
        self.pipeline = kvpress.KVPressTextGenerationPipeline(model=self.model, tokenizer=self.tokenizer)

    def answer(self, sample: Sample, method: str, keep_ratio: float) -> tuple[str, int]:
        """The answer, and how many tokens a head kept on average."""
        press = PRESSES[method](1 - keep_ratio) if method != "FULL" else None
        prompt, cache = sample.prompt, DynamicCache()
        inputs = {
            "context_ids": torch.tensor([prompt.context]),
            "questions_ids": [torch.tensor([prompt.question])],
        }
        options = {"press": press, "cache": cache, "max_new_tokens": sample.row.max_new_tokens}
        (text,) = self.pipeline.forward(inputs, **options)
        return text, self._kept(cache)

    def _kept(self, cache: Any) -> int:
        heads = kept = 0
        for layer, cached in zip(self.model.model.layers, cache.layers, strict=True):
            hidden = getattr(layer.self_attn, "masked_key_indices", None)
            heads += cached.keys.shape[1]
            kept += cached.keys.shape[1] * cached.keys.shape[2] - (len(hidden[2]) if hidden else 0)
        return round(kept / heads)


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a transformers model")
    Rows.add_options(parser)
    parser.add_argument("--methods", nargs="+", choices=["FULL", *PRESSES], required=True, metavar="METHOD")
    parser.add_argument("--keep-ratios", type=float, nargs="+", default=[0.5, 0.25, 0.1])
    parser.add_argument("--shard", default="0/1", help="I/N: every N-th row from the I-th on")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def measure(peer: Peer, run: Run, sample: Sample, options: argparse.Namespace, done: set[Key]) -> None:
    """One row by all methods that are not done yet."""
    for method in options.methods:
        for ratio in options.keep_ratios if method != "FULL" else [1.0]:
            if run.key(sample, PREFIX + method, ratio) in done:
                continue
            started = time.perf_counter()
            try:
                text, kept = peer.answer(sample, method, ratio)
            except ValueError as error:
                if NO_MASK not in str(error):
                    raise
                print(
                    f"{method} {ratio}: {sample.row.task}, row {sample.row.index}: {error}", file=sys.stderr
                )
                continue
            seconds = round(time.perf_counter() - started, 3)
            used = {"cached_tokens": 0, "owned_slots": kept, "seconds": seconds}
            save(options.out, run.result(sample, PREFIX + method, ratio, text, **used))


def main() -> None:
    """The rows of this shard, one after the other."""
    options = parse()
    peer, run = Peer(options.model), Run(Path(options.model).name, options.seed, options.length)
    samples = shard(list(Rows.of(options).samples(peer.tokenizer)), options.shard)
    done = known(options.out)
    append(options.out, {"run": {**environment(), "kvpress": version("kvpress")}})
    for number, sample in enumerate(samples, 1):
        measure(peer, run, sample, options, done)
        print(f"shard {options.shard}: {number} of {len(samples)} rows", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
