"""Scorers that read more than K, V and a window, against kvpress' press of the same name.

Both see one attention layer of transformers, with random weights, run on random hidden states: kvpress the layer
and its hidden states, we the queries, keys and values that come of them. Where a press protects tokens in its own
way, it is told to protect those that we do.
"""

import importlib
from dataclasses import dataclass, replace

import pytest
import torch
from helpers import assert_close, cos_sin_table, heads_of, score_window
from kvpress import (
    CompactorPress,
    CriticalAdaKVPress,
    CriticalKVPress,
    ExpectedAttentionPress,
    ObservedAttentionPress,
    ScorerPress,
    SnapKVPress,
)
from kvpress.presses.leverage_press import LeverageScorePress
from kvpress.utils import compute_n_kept
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

from adakv_kernels import Rotary
from adakv_sglang import AdaKVConfig
from adakv_sglang.core import allocate_budgets, select_tokens
from adakv_sglang.core.gather import GATHERERS, QueryPiece
from adakv_sglang.core.gather.non_causal import CHUNK
from adakv_sglang.core.scorers import LayerInputs, QuerySample
from adakv_sglang.core.scorers.leverage import SKETCH, leverage, sketch

HEADS, GROUP, DIM, HIDDEN, POSITIONS = 2, 3, 16, 42, 1600
SINKS = 4


@dataclass
class Layer:
    """What the presses read (leading dimension 1) and what we read of the same tokens."""

    module: LlamaAttention
    hidden: torch.Tensor
    encoding: tuple
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor

    @property
    def rotary(self):
        cos, sin = self.module.rotary_emb(self.hidden, torch.arange(POSITIONS).unsqueeze(0))
        return Rotary(torch.cat([cos[0, :, : DIM // 2], sin[0, :, : DIM // 2]], dim=1), is_neox=True)

    @property
    def output_weight(self):
        """A view of W_O, `[HQ, D, hidden]`."""
        return self.module.o_proj.weight.view(HIDDEN, HEADS * GROUP, DIM).permute(1, 2, 0)

    def press(self, press):
        """The press' scores, `[H, N]`."""
        batch = [each.transpose(0, 1).unsqueeze(0) for each in (self.key, self.value)]
        rest = {"position_embeddings": self.encoding}
        return press.score(self.module, self.hidden, *batch, None, rest)[0]

    def score(self, config, **extras):
        """Our scores of the same tokens."""
        window = self.query[-config.window :]
        return score_window(0, window, self.key, self.module.scaling, config, self.value, **extras)


def layer(num_tokens):
    """Weights large enough for attention to be far from even, queries with a mean of their own."""
    sizes = {"num_attention_heads": HEADS * GROUP, "num_key_value_heads": HEADS, "head_dim": DIM}
    config = LlamaConfig(
        hidden_size=HIDDEN, attn_implementation="sdpa", max_position_embeddings=POSITIONS, **sizes
    )
    module = LlamaAttention(config, layer_idx=0)
    module.rotary_emb = LlamaRotaryEmbedding(config)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=2.0 * HIDDEN**-0.5)
    module.requires_grad_(False)
    hidden = torch.randn(1, num_tokens, HIDDEN) + 0.3 * torch.randn(HIDDEN)
    encoding = module.rotary_emb(hidden, torch.arange(num_tokens).unsqueeze(0))
    states = [
        projection(hidden).view(1, num_tokens, -1, DIM).transpose(1, 2)
        for projection in (module.q_proj, module.k_proj, module.v_proj)
    ]
    states[:2] = apply_rotary_pos_emb(*states[:2], *encoding)
    return Layer(module, hidden, encoding, *(each[0].transpose(0, 1) for each in states))


@pytest.mark.parametrize("num_tokens", [90, 400])
def test_expected_attention_is_kvpress_with_epsilon(num_tokens):
    """The press takes the statistics of all queries behind the sinks: a window of as many tokens."""
    given = layer(num_tokens)
    config = AdaKVConfig(scorer="expected_attention", sinks=SINKS, window=num_tokens - SINKS)
    want = given.press(ExpectedAttentionPress(epsilon=1e-2, n_sink=SINKS))[:, SINKS:]
    got = given.score(config, rotary=given.rotary).value
    assert want.max() > 4 * want.median(), "the example should tell tokens apart"
    assert_close("expected attention", got[:, SINKS:], want, 2e-6)
    assert got[:, :SINKS].eq(0).all()


def test_expected_attention_of_a_sample_does_not_depend_on_the_window():
    given, order = layer(200), torch.randperm(200)
    config = AdaKVConfig(scorer="expected_attention", sinks=SINKS, window=8)
    sample = QuerySample(given.query[order], order)
    got = given.score(config, rotary=given.rotary, sample=sample).value[:, SINKS:]
    want = given.press(ExpectedAttentionPress(epsilon=1e-2, n_sink=SINKS))[:, SINKS:]
    assert_close("expected attention", got, want, 2e-6)


def test_expected_attention_refuses_a_table_that_ends_before_the_context():
    given = layer(60)
    config = AdaKVConfig(scorer="expected_attention", window=8)
    short = Rotary(given.rotary.cos_sin[:59], is_neox=True)
    with pytest.raises(ValueError, match="rotary: expected a table of 60 positions or more, got 59; take it"):
        given.score(config, rotary=short)


CRITICAL = AdaKVConfig(
    scorer="critical", allocator="adakv", window=8, sinks=SINKS, alpha=0.0, pooling="mean", kernel_size=5
)


def kept_candidates(scores, num_slots, config):
    """Our choice among the tokens that are not kept in any case, `[H, n]` booleans."""
    kept = select_tokens(scores, allocate_budgets(scores, num_slots, config), config)
    mask = torch.zeros(scores.value.shape, dtype=torch.bool)
    for row, head in zip(mask, heads_of(kept), strict=True):
        row[head] = True
    return mask[:, config.sinks : -config.window]


class Given(ScorerPress):
    """A press whose scores are ours."""

    def score(self, *args):
        return self.value.unsqueeze(0).clone()


def given_press(scores, ratio, config):
    """Our values of the candidates: the presses count the window into the first half, so they see none."""
    press = Given(ratio)
    press.value = scores.value[:, config.sinks : -config.window]
    return press


def test_critical_values_are_snapkv_and_its_weights_the_norms_of_kvpress():
    given = layer(150)
    scores = given.score(CRITICAL, output_weight=given.output_weight)
    want = given.press(SnapKVPress(window_size=8, kernel_size=5))
    assert_close("values", scores.value[:, :-8], want[:, :-8], 1e-7)
    values = given.value.transpose(0, 1).unsqueeze(0)
    assert_close("weights", scores.weight, CriticalKVPress.vwl1norm(values, given.module)[0], 1e-6)


def test_the_norms_of_a_long_context_are_those_of_its_parts(monkeypatch):
    given = layer(150)
    whole = given.score(CRITICAL, output_weight=given.output_weight).weight
    monkeypatch.setattr(importlib.import_module("adakv_kernels.value_norms.reference"), "PART", 40)
    assert_close("weights", given.score(CRITICAL, output_weight=given.output_weight).weight, whole, 1e-6)


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.83])
def test_critical_with_ada_keeps_what_critical_adakv_press_does_not_remove(ratio):
    given = layer(150)
    scores = given.score(CRITICAL, output_weight=given.output_weight)
    candidates = scores.value.shape[1] - CRITICAL.num_protected
    press = CriticalAdaKVPress(given_press(scores, ratio, CRITICAL), alpha_safeguard=0.0)
    values = given.value[SINKS:-8].transpose(0, 1).unsqueeze(0)
    press.compress(given.module, None, values, values, None, {})
    _, head, position = given.module.masked_key_indices
    removed = torch.zeros(HEADS, candidates, dtype=torch.bool)
    removed[head, position] = True
    num_slots = compute_n_kept(candidates, ratio) + CRITICAL.num_protected
    assert torch.equal(kept_candidates(scores, num_slots, CRITICAL), ~removed)
    one_stage = kept_candidates(replace(scores, weight=None), num_slots, CRITICAL)
    assert not torch.equal(one_stage, ~removed), "the example should need the second stage"


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.83])
def test_critical_with_equal_budgets_keeps_what_critical_press_ranks_first(ratio):
    given, config = layer(150), replace(CRITICAL, allocator="uniform")
    scores = given.score(config, output_weight=given.output_weight)
    candidates = scores.value.shape[1] - config.num_protected
    values = given.value[SINKS:-8].transpose(0, 1).unsqueeze(0)
    theirs = CriticalKVPress(given_press(scores, ratio, config)).score(
        given.module, None, values, values, None, {}
    )
    count = compute_n_kept(candidates, ratio)
    want = torch.zeros(HEADS, candidates, dtype=torch.bool)
    want.scatter_(1, theirs[0].topk(count, dim=1).indices, True)
    assert torch.equal(kept_candidates(scores, count + config.num_protected, config), want)


def gathered(given, scorer, config):
    """What the scorer's gatherer read of the layer, in three pieces."""
    num_tokens = len(given.key)
    gatherer = GATHERERS[scorer](num_tokens, config)
    for begin, end in ((0, 100), (100, 110), (110, num_tokens)):
        slots = torch.arange(end)
        query = given.query[begin:end]
        gatherer.add(QueryPiece(0, begin, query, given.key, given.value, slots, given.module.scaling))
    return gatherer.result(0)


@pytest.mark.parametrize("keep_ratio", [0.2, 0.6])
def test_compactor_is_kvpress_with_the_same_sketch_and_whole_chunks(keep_ratio, monkeypatch):
    given = layer(SINKS + 2 * CHUNK + 8)
    config = AdaKVConfig(scorer="compactor", keep_ratio=keep_ratio, sinks=SINKS, window=8)
    got = given.score(config, rotary=given.rotary, gathered=gathered(given, "compactor", config)).value
    ours = sketch(0, HEADS, DIM, given.key.device).unsqueeze(0)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: ours * SKETCH**0.5)
    press = CompactorPress(compression_ratio=1 - keep_ratio, sink_size_start=SINKS, sink_size_end=8)
    want = given.press(press)
    assert_close("compactor", got[:, SINKS:-8], want[:, SINKS:-8], 5e-6)


@pytest.mark.parametrize("dim", [32, 128], ids=["narrower than the sketch", "wider"])
def test_leverage_is_kvpress_of_the_keys_before_rotation(dim, monkeypatch):
    before = torch.randn(400, HEADS, dim) * torch.logspace(0, -1.5, dim) + 5 * torch.randn(HEADS, dim)
    rotary = Rotary(cos_sin_table(400, dim).float(), is_neox=False)
    key = rotary.rotate(before, torch.arange(400))
    inputs = LayerInputs(3, key[-8:], key, key, 1.0, torch.arange(400), rotary)
    got, ours = leverage(inputs, slice(SINKS, -8)), sketch(3, HEADS, dim, key.device).unsqueeze(0)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: ours * SKETCH**0.5)
    states = before[SINKS:-8].transpose(0, 1).unsqueeze(0)
    want = LeverageScorePress.compute_leverage_scores(states, SKETCH)[0]
    assert_close("leverage", got, want, 5e-6)
    assert want.max() > 1.5 * want.median(), "the example should tell tokens apart"


def test_the_sketch_differs_between_layers_and_heads_and_has_its_variance():
    cpu = torch.device("cpu")
    drawn = sketch(0, 8, 128, cpu)
    again, other = sketch.__wrapped__(0, 8, 128, cpu), sketch(1, 8, 128, cpu)
    assert torch.equal(drawn, again) and not torch.equal(drawn, other)
    assert not torch.equal(drawn[0], drawn[1])
    assert drawn.square().mean().item() == pytest.approx(1 / SKETCH, rel=0.02)


def test_keys_that_are_all_alike_have_no_leverage_and_break_nothing():
    given = layer(120)
    given.key[:] = given.rotary.rotate(torch.full_like(given.key, 3.0), torch.arange(120))
    config = AdaKVConfig(scorer="compactor", sinks=SINKS, window=8)
    scores = given.score(config, rotary=given.rotary, gathered=torch.rand(HEADS, 120))
    assert scores.value.isfinite().all()


def test_h2o_is_kvpress_on_the_layers_own_attention():
    """The press reads the probabilities that eager attention returns."""
    given = layer(150)
    given.module.config._attn_implementation = "eager"
    later = torch.full((150, 150), float("-inf")).triu(1).view(1, 1, 150, 150)
    attention = given.module(given.hidden, given.encoding, later)[1]
    batch = given.key.transpose(0, 1).unsqueeze(0)
    want = ObservedAttentionPress().score(given.module, given.hidden, batch, batch, attention, {})[0]
    config = AdaKVConfig(scorer="h2o", window=8)
    assert_close("h2o", given.score(config, gathered=gathered(given, "h2o", config)).value, want, 1e-7)


def test_kvzip_is_what_was_gathered():
    given, seen = layer(60), torch.rand(HEADS, 60)
    assert torch.equal(given.score(AdaKVConfig(scorer="kvzip", window=8), gathered=seen).value, seen)


def weights_by_definition(given, config):
    """Both weights in float64: the value behind the whole projection, and the leverage by a solution."""
    before = given.rotary.unrotate(given.key, torch.arange(len(given.key))).double()
    projected = torch.einsum(
        "nhd,hgde->nhge", given.value.double(), given.output_weight.double().unflatten(0, (HEADS, GROUP))
    )
    lengths = projected.flatten(2).norm(dim=2).T
    want = lengths / lengths.mean()
    for head in range(HEADS):
        keys = before[config.sinks :, head]
        rows = (keys - keys.mean(dim=0)) @ sketch(0, HEADS, DIM, keys.device)[head].double()
        gram = rows.T @ rows + 1e-2 * torch.eye(SKETCH)
        found = (rows * torch.linalg.solve(gram, rows.T).T).sum(dim=1)
        want[head, config.sinks :] *= (found / found.mean()).sqrt()
    return want


def distances(given):
    """Of keys from their mean direction, in float64."""
    direction = torch.nn.functional.normalize(given.key.double(), dim=2)
    anchor = torch.nn.functional.normalize(direction.mean(dim=0), dim=1)
    return 1 - (direction * anchor).sum(dim=2).T


@pytest.mark.parametrize("num_tokens", [40, 300])
def test_the_weighted_scorers_are_their_definition(num_tokens):
    given, seen = layer(num_tokens), torch.rand(HEADS, num_tokens)
    for scorer, plain in (("kvzip_weighted", seen.double()), ("keydiff_weighted", distances(given))):
        config = AdaKVConfig(scorer=scorer, sinks=SINKS, window=8)
        got = given.score(config, rotary=given.rotary, output_weight=given.output_weight, gathered=seen).value
        assert_close(scorer, got, plain * weights_by_definition(given, config), 2e-5)


def test_the_weighted_scorers_without_projection_and_rotation_weigh_by_the_value_alone():
    given, seen = layer(60), torch.rand(HEADS, 60)
    norms = given.value.norm(dim=2).T
    for scorer, plain in (("kvzip_weighted", seen), ("keydiff_weighted", distances(given))):
        got = given.score(AdaKVConfig(scorer=scorer, window=8), gathered=seen).value
        assert_close(scorer, got, plain * norms / norms.mean(), 1e-6)


def test_tokens_that_are_all_alike_are_weighted_alike():
    given, seen = layer(120), torch.rand(HEADS, 120)
    given.key[:] = given.rotary.rotate(torch.full_like(given.key, 3.0), torch.arange(120))
    given.value[:] = 0.0
    config = AdaKVConfig(scorer="kvzip_weighted", sinks=SINKS, window=8)
    got = given.score(config, output_weight=given.output_weight, gathered=seen).value
    assert_close("kvzip_weighted", got, seen, 1e-6)
    rotated = given.score(config, rotary=given.rotary, output_weight=given.output_weight, gathered=seen).value
    assert rotated.isfinite().all()


def defensive_by_definition(given, window):
    """DefensiveKV in float64, query by query; kvpress has no such press."""
    num_tokens = len(given.key)
    before, weight = num_tokens - window, given.output_weight.double()
    worst, norms = torch.zeros(HEADS, before).double(), torch.zeros(HEADS, before).double()
    for row in range(HEADS * GROUP):
        head = row // GROUP
        norms[head] += (given.value[:before, head].double() @ weight[row]).abs().sum(dim=1) / GROUP
        for position in range(before, num_tokens):
            logits = given.key[: position + 1, head].double() @ given.query[position, row].double()
            seen = (logits * given.module.scaling).softmax(dim=0)[:before]
            padded = torch.cat([torch.zeros(2), seen, torch.zeros(2)])
            smooth = padded.unfold(0, 5, 1).mean(dim=1)
            worst[head] = worst[head].maximum(smooth * seen.sum() / smooth.sum())
    return worst.maximum(worst.mean(dim=1, keepdim=True)) * norms / norms.sum(dim=0)


@pytest.mark.parametrize("room", [2**24, 4 * GROUP * 90], ids=["at once", "four queries at a time"])
@pytest.mark.parametrize("num_tokens", [9, 90])
def test_defensive_is_its_definition(num_tokens, room, monkeypatch):
    monkeypatch.setattr("adakv_sglang.core.gather.rows.ROOM", room)
    given = layer(num_tokens)
    config = AdaKVConfig(scorer="defensive", sinks=1, window=7)
    got = given.score(config, output_weight=given.output_weight).value
    assert_close("defensive", got[:, :-7], defensive_by_definition(given, 7), 5e-7)
    assert got[:, -7:].eq(0).all()
