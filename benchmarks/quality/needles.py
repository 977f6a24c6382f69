"""Which scorer and allocator still finds a number in a text, question unknown: a quick comparison on a CPU.

A sentence with a city and a number is hidden in a real text. The text is compressed once; then the model is asked
for the number. Plain transformers with a mask per head and layer stands in for the server (its answers are the
same: tests/e2e/test_forced_heads.py), so that one prefill serves all methods. `found`: every token of the answer
is the likeliest one. `log_prob`: mean log-probability of the answer's tokens, less coarse with few samples.

Run: python benchmarks/quality/needles.py --model FOLDER [--samples 40] [--out FILE]
"""

import argparse
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.masking_utils import sdpa_mask

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
from common import record

from adakv_sglang import AdaKVConfig
from adakv_sglang.config import ALLOCATORS, SCORERS
from adakv_sglang.core import LayerInputs, allocate, score_layer, select_tokens

TEXT = ROOT / "examples" / "texts" / "us_constitution.txt"
CITIES = ("Lisbon", "Oslo", "Cairo", "Lima", "Quito", "Riga", "Hanoi", "Dakar", "Perth", "Turin")


@dataclass(frozen=True)
class Sample:
    """Token ids `[n]` of the context, of the question behind it, and of the answer."""

    context: torch.Tensor
    question: torch.Tensor
    answer: torch.Tensor


class Attention:
    """SDPA that records what it sees of a context, or hides tokens of it per head."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[torch.Tensor, ...]] = {}
        self.kept: list[torch.Tensor] | None = None  # per layer bool `[H, N]`
        AttentionInterface.register("needles", self)
        AttentionMaskInterface.register("needles", sdpa_mask)

    def __call__(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **rest: Any
    ) -> Any:
        """As transformers calls it; tensors are `[1, heads, tokens, D]`."""
        if self.kept is None:
            self.seen[module.layer_idx] = tuple(each[0].transpose(0, 1) for each in (query, key, value))
        else:
            kept = self.kept[module.layer_idx].repeat_interleave(query.shape[1] // key.shape[1], 0)
            own = torch.ones(query.shape[2], key.shape[2] - kept.shape[1], dtype=torch.bool).tril()
            context = kept.unsqueeze(1).expand(-1, query.shape[2], -1)
            mask = torch.cat([context, own.expand(len(kept), -1, -1)], dim=2).unsqueeze(0)
        return AttentionInterface()["sdpa"](module, query, key, value, mask, **rest)


def samples(tokenizer: Any, count: int, num_tokens: int) -> list[Sample]:
    """The same for the same count and length."""
    source, ids = random.Random(20240711), tokenizer.encode(TEXT.read_text(encoding="utf-8"))
    made = []
    for _ in range(count):
        city, number = source.choice(CITIES), source.randrange(10000, 99999)
        start, depth = source.randrange(len(ids) - num_tokens), source.randrange(40, num_tokens - 80)
        needle = tokenizer.encode(f"\nThe secret number of {city} is {number}.\n")
        text = ids[start : start + num_tokens]
        question = tokenizer.encode(
            f"\n\nQuestion: What is the secret number of {city}?\nAnswer: The secret number of {city} is"
        )
        pieces = (text[:depth] + needle + text[depth:], question, tokenizer.encode(f" {number}"))
        made.append(Sample(*(torch.tensor(piece) for piece in pieces)))
    return made


def keep(attention: Attention, num_slots: int, config: AdaKVConfig) -> list[torch.Tensor]:
    """Per layer which tokens of the context each head keeps, bool `[H, N]`."""
    slots = torch.arange(attention.seen[0][1].shape[0])
    inputs = (
        LayerInputs(layer, query[-config.window :], key, value, query.shape[2] ** -0.5, slots)
        for layer, (query, key, value) in sorted(attention.seen.items())
    )
    masks = []
    scored = (score_layer(each, config) for each in inputs)
    for scores, budgets in allocate(scored, len(attention.seen), num_slots, config):
        kept = select_tokens(scores, budgets, config)
        mask = torch.zeros(scores.value.shape, dtype=torch.bool)
        heads = torch.arange(len(mask)).repeat_interleave(torch.tensor(kept.indptr).diff())
        mask[heads, kept.index] = True
        masks.append(mask)
    return masks


def answer(model: Any, attention: Attention, sample: Sample, cache: Any) -> tuple[bool, float]:
    """Whether the answer is found, and its mean log-probability; the cache is left as it was."""
    asked = torch.cat([sample.question, sample.answer])
    logits = model(asked.unsqueeze(0), past_key_values=cache).logits[0].float()
    cache.crop(-len(asked))
    chosen = logits[len(sample.question) - 1 : -1].log_softmax(-1)
    found = bool((chosen.argmax(-1) == sample.answer).all())
    return found, float(chosen.gather(1, sample.answer.unsqueeze(1)).mean())


def main() -> None:
    """One line per method and keep ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--keep-ratios", type=float, nargs="+", default=[0.5, 0.3, 0.1])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    attention = Attention()
    model.set_attn_implementation("needles")
    methods = [(s, a, r) for r in options.keep_ratios for s in SCORERS for a in ALLOCATORS]
    results: dict[Any, list[tuple[bool, float]]] = {method: [] for method in [None, *methods]}
    with torch.no_grad():
        for sample in samples(AutoTokenizer.from_pretrained(options.model), options.samples, options.tokens):
            attention.kept = None
            cache = model(sample.context.unsqueeze(0), use_cache=True).past_key_values
            everything = torch.ones(attention.seen[0][1].shape[1], len(sample.context), dtype=torch.bool)
            masks: dict[Any, list[torch.Tensor]] = {None: [everything] * len(attention.seen)}
            for scorer, allocator, ratio in methods:
                config = AdaKVConfig(keep_ratio=ratio, scorer=scorer, allocator=allocator)
                masks[scorer, allocator, ratio] = keep(
                    attention, config.num_slots(len(sample.context)), config
                )
            for method, attention.kept in masks.items():
                results[method].append(answer(model, attention, sample, cache))
    for method, found in results.items():
        name = (
            {"method": "everything"}
            if method is None
            else dict(zip(("scorer", "allocator", "keep_ratio"), method, strict=True))
        )
        mean = sum(log_prob for _, log_prob in found) / len(found)
        record(
            options.out,
            {**name, "samples": len(found), "found": sum(f for f, _ in found), "log_prob": round(mean, 3)},
        )


if __name__ == "__main__":
    main()
