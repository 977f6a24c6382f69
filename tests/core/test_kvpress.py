"""The same tokens as kvpress keeps, on a real model's queries and keys.

kvpress is NVIDIA's independent implementation of Ada-KV. It hooks the model's attention layers, scores
with its own SnapKVPress and notes what it removes in `module.masked_key_indices`. We score the queries
and keys that reached attention in a plain forward. Both are float32, summed in a different order.
The safeguard is off: kvpress' differs (each head's best tokens first, then the ranking; not a mix).
"""

import os
from pathlib import Path

import pytest
import torch
from helpers import heads_of, random_scores, score_window
from kvpress import AdaKVPress, ScorerPress, SnapKVPress
from kvpress.utils import compute_n_kept
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.masking_utils import sdpa_mask

from adakv_sglang import AdaKVConfig
from adakv_sglang.core import allocate_budgets, select_tokens

MODEL = Path(os.environ.get("ADAKV_TEST_MODEL") or "~/.cache/adakv-sglang/smollm2-135m-instruct").expanduser()
TEXT = Path(__file__).parents[2] / "examples" / "texts" / "us_constitution.txt"
NUM_TOKENS, WINDOW = 420, 32
RATIOS = [0.3, 0.5, 0.7]  # share removed
ROUNDING = 2e-6  # relative; measured 3.4e-7 between the two ways of computing the scores


class RecordingSnapKV(SnapKVPress):
    """SnapKV that remembers its scores per layer."""

    def score(self, module, *args):
        scores = super().score(module, *args)
        self.seen = getattr(self, "seen", {}) | {module.layer_idx: scores[0].clone()}
        return scores


@pytest.fixture(scope="module")
def model():
    assert (MODEL / "config.json").is_file(), f"{MODEL}: expected the small model; run `make setup`"
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="sdpa").eval()


@pytest.fixture(scope="module")
def token_ids():
    text = TEXT.read_text(encoding="utf-8")
    return AutoTokenizer.from_pretrained(MODEL)(text, return_tensors="pt").input_ids[:, :NUM_TOKENS]


@pytest.fixture(scope="module")
def attention_inputs(model, token_ids):
    """Per layer, of a plain forward: query `[N, HQ, D]` and key `[N, H, D]` with RoPE, and the scaling."""
    seen = {}

    def record(module, query, key, value, attention_mask, **kwargs):
        seen[module.layer_idx] = query[0].transpose(0, 1), key[0].transpose(0, 1), kwargs["scaling"]
        return AttentionInterface()["sdpa"](module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("adakv_recording_sdpa", record)
    AttentionMaskInterface.register("adakv_recording_sdpa", sdpa_mask)
    model.set_attn_implementation("adakv_recording_sdpa")
    with torch.no_grad():
        model.model(token_ids)
    model.set_attn_implementation("sdpa")
    return seen


@pytest.fixture(scope="module", params=RATIOS, ids=lambda ratio: f"removed {ratio}")
def kvpress_run(request, model, token_ids):
    """One prefill under kvpress: `(ratio, scores per layer, removed per layer, both [H, N])`."""
    press = RecordingSnapKV(compression_ratio=request.param, window_size=WINDOW, kernel_size=5)
    positions = torch.arange(
        NUM_TOKENS
    )  # kvpress 0.5.5 reads it; transformers 5.19 no longer passes it by itself
    with torch.no_grad(), AdaKVPress(press, alpha_safeguard=0.0)(model):
        model.model(token_ids, use_cache=True, cache_position=positions)
    removed = {}
    for layer in model.model.layers:
        _, head, position = layer.self_attn.masked_key_indices
        removed[layer.self_attn.layer_idx] = torch.zeros(press.seen[0].shape, dtype=torch.bool)
        removed[layer.self_attn.layer_idx][head, position] = True
    return request.param, press.seen, removed


@pytest.fixture(scope="module")
def our_scores(attention_inputs):
    """Per layer, the same for every ratio."""
    return {
        layer: score_window(layer, query[-WINDOW:], key, scaling, settings(0.5))
        for layer, (query, key, scaling) in attention_inputs.items()
    }


def kept_mask(scores, num_slots, config):
    """Our tokens as `[H, N]` booleans."""
    kept = select_tokens(scores, allocate_budgets(scores, num_slots, config), config)
    mask = torch.zeros(scores.value.shape, dtype=torch.bool)
    for row, head in zip(mask, heads_of(kept), strict=True):
        row[head] = True
    return mask


def settings(ratio):
    return AdaKVConfig(
        allocator="adakv",
        scorer="snapkv",
        keep_ratio=1 - ratio,
        alpha=0.0,
        window=WINDOW,
        pooling="mean",
        kernel_size=5,
        sinks=0,
    )


def test_our_scores_are_kvpress_scores_up_to_rounding(our_scores, kvpress_run):
    _, theirs, _ = kvpress_run
    for layer, want in theirs.items():
        got = our_scores[layer].value
        error = ((got - want).abs() / want)[:, :-WINDOW].max().item()
        assert error < ROUNDING, f"layer {layer}: scores differ by {error:.3g} (relative)"


def test_we_keep_exactly_what_kvpress_does_not_remove(our_scores, kvpress_run):
    """No tolerance: the closest call in these 90 rankings, 2.9e-5 apart, is 14 times ROUNDING."""
    ratio, _, removed = kvpress_run
    num_slots, config = compute_n_kept(NUM_TOKENS, ratio), settings(ratio)
    assert len(removed) == len(our_scores) == 30
    for layer, gone in removed.items():
        scores = our_scores[layer]
        kept = kept_mask(scores, num_slots, config)
        candidates = scores.value[:, :-WINDOW].flatten().sort(descending=True).values
        last = gone.shape[0] * (num_slots - WINDOW)
        border = candidates[last - 1 : last + 1].tolist()
        assert int(gone.sum()) == gone.shape[0] * (NUM_TOKENS - num_slots)
        assert torch.equal(kept, ~gone), (
            f"layer {layer}: (head, position) {(kept == gone).nonzero().tolist()} differ, "
            f"scores {scores.value[kept == gone].tolist()}; the border lies between {border}"
        )


def test_budgets_really_differ_between_heads_on_this_text(kvpress_run):
    _, _, removed = kvpress_run
    spread = [(~gone).sum(dim=1) for gone in removed.values()]
    assert all(kept.max() > kept.min() for kept in spread)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("num_heads", [1, 2, 8])
def test_random_scores_are_ranked_as_by_kvpress(num_heads, ratio):
    scores = random_scores(num_heads, 300)
    value = scores.value.clone()
    value[:, -WINDOW:] = 2.0  # kvpress leaves the window's protection to the scorer

    class Fixed(ScorerPress):
        def score(self, *args):
            return value.unsqueeze(0).clone()

    module = torch.nn.Module()
    module.config = type("Config", (), {"_attn_implementation": "sdpa"})()
    AdaKVPress(Fixed(ratio), alpha_safeguard=0.0).compress(module, *[None] * 5)
    _, head, position = module.masked_key_indices
    removed = torch.zeros_like(value, dtype=torch.bool)
    removed[head, position] = True
    assert torch.equal(kept_mask(scores, compute_n_kept(300, ratio), settings(ratio)), ~removed)
