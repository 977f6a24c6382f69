"""Every scorer against kvpress' press of the same name, on the same keys and values; baselines by what they mean."""

import importlib

import pytest
import torch
from helpers import assert_close, cos_sin_table, generator, score_window
from kvpress import KeyDiffPress, KnormPress, LagKVPress

from adakv_kernels import Rotary
from adakv_sglang import AdaKVConfig, config
from adakv_sglang.core import LayerInputs, budgets, score_layer
from adakv_sglang.core.scorers import SCORERS
from adakv_sglang.core.scorers.lagkv import LAG

PRESSES = {"keydiff": KeyDiffPress(), "knorm": KnormPress(), "lagkv": LagKVPress(n_sink=4, lag_size=LAG)}
HEADS, GROUP, DIM, WINDOW = 3, 2, 16, 8


def tensors(num_tokens, dtype=torch.float32):
    query = torch.randn(WINDOW, HEADS * GROUP, DIM)
    key = torch.randn(num_tokens, HEADS, DIM) * (1 + torch.arange(HEADS).view(-1, 1))
    return [each.to(dtype) for each in (query, key + 0.5, torch.randn(num_tokens, HEADS, DIM))]


def extras(num_tokens, dtype=torch.float32):
    """Everything that any scorer reads beside K, V and the window's queries; the same in every call."""
    gen = generator(1)
    return {
        "rotary": Rotary(cos_sin_table(num_tokens + 20, DIM).float(), is_neox=True),
        "output_weight": torch.randn(HEADS * GROUP, DIM, 24, generator=gen).to(dtype),
        "gathered": torch.rand(HEADS, num_tokens, generator=gen),
    }


@pytest.mark.parametrize("num_tokens", [60, 4 + 2 * LAG - 1, 4 + 2 * LAG, 4 + 3 * LAG + 50])
@pytest.mark.parametrize("scorer", PRESSES)
def test_values_are_those_of_kvpress(scorer, num_tokens):
    query, key, value = tensors(num_tokens)
    config = AdaKVConfig(scorer=scorer, window=WINDOW, sinks=4)
    got = score_window(0, query, key, 0.25, config, value).value
    batch = [each.transpose(0, 1).unsqueeze(0) for each in (key, value)]
    want = PRESSES[scorer].score(None, None, *batch, None, {})[0]
    if (
        scorer == "lagkv" and num_tokens < 4 + 2 * LAG
    ):  # by age, which kvpress counts from behind the sinks on
        got, want = got[:, 4:].argsort(dim=1), want[:, 4:].argsort(dim=1)
    assert_close(scorer, got, want, 2e-6)


@pytest.mark.parametrize(
    ("scorer", "parts"),
    [("keydiff", "adakv_kernels.key_similarity.reference"), ("knorm", "adakv_sglang.core.scorers.inputs")],
)
def test_parts_of_a_long_context_are_scored_as_one(scorer, parts, monkeypatch):
    query, key, value = tensors(300)
    config = AdaKVConfig(scorer=scorer, window=WINDOW)
    whole = score_window(0, query, key, 0.25, config, value).value
    monkeypatch.setattr(importlib.import_module(parts), "PART", 128)
    assert_close(scorer, score_window(0, query, key, 0.25, config, value).value, whole, 2e-6)


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tokens_may_lie_anywhere_in_the_pool(scorer, dtype):
    query, key, value = tensors(300, dtype)
    config = AdaKVConfig(scorer=scorer, window=WINDOW, sinks=2)
    slots = torch.randperm(700)[:300]
    pool = torch.full((2, 700, HEADS, DIM), float("nan"), dtype=dtype)
    pool[0, slots], pool[1, slots] = key, value
    more = extras(300, dtype)
    scores = score_layer(LayerInputs(1, query, pool[0], pool[1], 0.25, slots, **more), config)
    want = score_window(1, query, key, 0.25, config, value, **more)
    assert scores.value.dtype == torch.float32 and tuple(scores.value.shape) == (HEADS, 300)
    assert torch.equal(scores.value, want.value) and torch.equal(scores.mass, want.mass)
    assert scores.value.isfinite().all()
    assert (scores.weight is None) == (SCORERS[scorer].weight is None)
    assert scores.weight is None or torch.equal(scores.weight, want.weight)


@pytest.mark.parametrize(
    ("scorer", "field"), [(spec.name, field) for spec in SCORERS.values() for field in spec.reads]
)
def test_what_a_scorer_reads_and_does_not_get_is_named(scorer, field):
    query, key, value = tensors(60)
    given = extras(60) | {field: None}
    message = (
        f"{field}: the scorer {scorer} expected a value, got None; provide LayerInputs.{field} or choose"
    )
    with pytest.raises(ValueError, match=message):
        score_window(0, query, key, 0.25, AdaKVConfig(scorer=scorer, window=WINDOW), value, **given)


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_scorer_reads_no_more_than_it_says(scorer):
    query, key, value = tensors(60)
    config = AdaKVConfig(scorer=scorer, window=WINDOW)
    read = {*SCORERS[scorer].reads, *SCORERS[scorer].prefers}
    given = {field: each for field, each in extras(60).items() if field in read}
    got = score_window(0, query, key, 0.25, config, value, **given).value
    assert torch.equal(got, score_window(0, query, key, 0.25, config, value, **extras(60)).value)


def test_every_scorer_and_allocator_that_can_be_chosen_exists():
    assert tuple(SCORERS) == config.SCORERS
    assert all(spec.name == name for name, spec in SCORERS.items())
    assert {*budgets.ALLOCATORS, budgets.CROSS_LAYER} == set(config.ALLOCATORS)


def test_streaming_keeps_the_latest():
    scores = score_window(0, *tensors(50)[:2], 0.25, AdaKVConfig(scorer="streaming", window=WINDOW))
    assert (scores.value.diff(dim=1) > 0).all()


def test_random_is_the_same_in_every_run_and_differs_between_layers():
    query, key, _ = tensors(50)
    config = AdaKVConfig(scorer="random", window=WINDOW)
    first, again, other = (score_window(layer, query, key, 0.25, config).value for layer in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_mass_is_the_windows_attention_whatever_the_scorer():
    query, key, value = tensors(60)
    masses = [
        score_window(0, query, key, 0.25, AdaKVConfig(scorer=scorer, window=WINDOW), value, **extras(60)).mass
        for scorer in SCORERS
    ]
    assert all(torch.equal(mass, masses[0]) for mass in masses)
