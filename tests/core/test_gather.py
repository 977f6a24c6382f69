"""Gatherers, fed in pieces, against attention in float64 and against kvpress' presses."""

from types import SimpleNamespace

import pytest
import torch
from helpers import assert_close, generator
from hypothesis import given
from hypothesis import strategies as st
from kvpress import ObservedAttentionPress
from kvpress.presses.non_causal_attention_press import NonCausalAttnPress

from adakv_sglang import AdaKVConfig
from adakv_sglang.core.gather import (
    GATHERERS,
    AccumulatedGatherer,
    NonCausalGatherer,
    QueryPiece,
    non_causal,
    rows,
)
from adakv_sglang.core.scorers import SCORERS

HEADS, GROUP, DIM, SCALING = 2, 3, 8, 0.5
CONFIG = AdaKVConfig(sinks=3, window=7)
BOTH = pytest.mark.parametrize("kind", [NonCausalGatherer, AccumulatedGatherer])


class Tokens:
    """A context in a pool of NaN: query `[N, HQ, D]`; of the pool, `slots` are its tokens."""

    def __init__(self, num_tokens, gen=None):
        self.query = torch.randn(num_tokens, HEADS * GROUP, DIM, generator=gen)
        self.key = torch.randn(num_tokens, HEADS, DIM, generator=gen)
        self.slots = torch.randperm(2 * num_tokens, generator=gen)[:num_tokens]
        self.pool = torch.full((2, 2 * num_tokens, HEADS, DIM), float("nan"))
        self.pool[:, self.slots] = self.key
        self.num_tokens = num_tokens

    def piece(self, begin, end, layer=0):
        """Queries of `[begin, end)` in memory that is overwritten once the piece was added."""
        query = self.query[begin:end].clone()
        return QueryPiece(layer, begin, query, self.pool[0], self.pool[1], self.slots[:end], SCALING)

    def gather(self, gatherer, cuts=(), layer=0):
        """Feed everything, cut at these positions."""
        bounds = [0, *sorted(cuts), self.num_tokens]
        for begin, end in zip(bounds, bounds[1:], strict=False):
            piece = self.piece(begin, end, layer)
            gatherer.add(piece)
            piece.query.fill_(float("nan"))
        return gatherer.result(layer)

    def logits(self, row):
        """Plain dot products of one query head with its keys, float64 `[N, N]`."""
        return self.query[:, row].double() @ self.key[:, row // GROUP].double().T


def observed(tokens):
    """ObservedAttentionPress on attention in float64."""
    later = torch.ones(tokens.num_tokens, tokens.num_tokens, dtype=torch.bool).triu(1)
    attention = [
        (tokens.logits(row) * SCALING).masked_fill(later, float("-inf")).softmax(dim=1)
        for row in range(HEADS * GROUP)
    ]
    keys = tokens.key.transpose(0, 1).unsqueeze(0)
    press = ObservedAttentionPress()
    return press.score(SimpleNamespace(), None, keys, keys, torch.stack(attention).unsqueeze(0), {})[0]


def in_chunks(tokens, config):
    """Every query of a chunk over the chunk's keys, chunk by chunk in float64."""
    want = torch.zeros(HEADS, tokens.num_tokens, dtype=torch.float64)
    end = tokens.num_tokens - config.window
    for begin in range(config.sinks, end, non_causal.CHUNK):
        chunk = slice(begin, min(begin + non_causal.CHUNK, end))
        for row in range(HEADS * GROUP):
            want[row // GROUP, chunk] += tokens.logits(row)[chunk, chunk].softmax(dim=1).sum(dim=0) / GROUP
    return want


WANT = {AccumulatedGatherer: lambda tokens, config: observed(tokens), NonCausalGatherer: in_chunks}


@BOTH
@pytest.mark.parametrize("num_tokens", [11, 100, 300, 10 + 512, 700])
def test_the_whole_context_at_once(kind, num_tokens):
    tokens = Tokens(num_tokens)
    got = tokens.gather(kind(num_tokens, CONFIG))
    assert got.dtype == torch.float32
    assert_close(kind.__name__, got, WANT[kind](tokens, CONFIG), 1e-6)


@BOTH
@given(data=st.data())
def test_pieces_may_be_cut_anywhere(kind, data):
    num_tokens = data.draw(st.integers(11, 60))
    cuts = data.draw(st.sets(st.integers(1, num_tokens - 1), max_size=8))
    tokens = Tokens(num_tokens, generator(data.draw(st.integers(0, 2**16))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(non_causal, "CHUNK", 16)
        patch.setattr(rows, "ROOM", 200)  # a few rows at a time
        patch.setattr(non_causal, "ROOM", 2000)  # two chunks at a time
        got = tokens.gather(kind(num_tokens, CONFIG), cuts)
        assert_close(kind.__name__, got, WANT[kind](tokens, CONFIG), 1e-6)


@pytest.mark.parametrize("cuts", [(), (100, 101, 400)], ids=["at once", "in pieces"])
def test_whole_chunks_are_those_of_kvpress(cuts):
    """Behind the sinks and before the window, as CompactorPress cuts them off before it calls this."""
    tokens = Tokens(CONFIG.num_protected + 512)
    inner = slice(CONFIG.sinks, -CONFIG.window)
    query = tokens.query[inner].transpose(0, 1).unsqueeze(0)
    key = tokens.key[inner].transpose(0, 1).repeat_interleave(GROUP, 0).unsqueeze(0)
    want = NonCausalAttnPress.non_causal_chunked_attn(query, key, non_causal.CHUNK)[0]
    got = tokens.gather(NonCausalGatherer(tokens.num_tokens, CONFIG), cuts)
    assert_close("chunks", got[:, inner], want.view(HEADS, GROUP, -1).mean(dim=1), 1e-6)
    assert got[:, : CONFIG.sinks].eq(0).all() and got[:, -CONFIG.window :].eq(0).all()


@BOTH
def test_layers_are_apart_and_a_retraction_adds_nothing_twice(kind):
    first, second = Tokens(300), Tokens(300)
    gatherer = kind(300, CONFIG)
    for layer, tokens in enumerate((first, second)):
        gatherer.add(tokens.piece(0, 120, layer))
        gatherer.add(tokens.piece(0, 90, layer))
        gatherer.add(tokens.piece(80, 200, layer))
        gatherer.add(tokens.piece(200, 300, layer))
        gatherer.add(tokens.piece(0, 300, layer))
    for layer, tokens in enumerate((first, second)):
        assert_close(f"layer {layer}", gatherer.result(layer), WANT[kind](tokens, CONFIG), 1e-6)


@BOTH
@pytest.mark.parametrize(
    ("pieces", "got"),
    [([], 0), ([(100, 300)], 0), ([(0, 100)], 100), ([(0, 100), (150, 300)], 100)],
    ids=["nothing", "the start from a cache", "the end missing", "a gap"],
)
def test_missing_queries_are_named(kind, pieces, got):
    tokens, gatherer = Tokens(300), kind(300, CONFIG)
    for begin, end in pieces:
        gatherer.add(tokens.piece(begin, end))
    message = f"queries of layer 0: expected those of all 300 tokens, got the first {got}; compute the whole"
    with pytest.raises(ValueError, match=message):
        gatherer.result(0)


@BOTH
def test_after_a_failure_there_is_no_result_that_counts_a_piece_twice(kind, monkeypatch):
    tokens, gatherer = Tokens(300), kind(300, CONFIG)

    def fail(*_):
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as patch:
        patch.setattr(rows, "products", fail)
        patch.setattr(non_causal, "products", fail)
        with pytest.raises(torch.OutOfMemoryError):
            gatherer.add(tokens.piece(0, 300))
    gatherer.add(tokens.piece(0, 300))
    with pytest.raises(ValueError, match="got a piece that failed"):
        gatherer.result(0)


@BOTH
def test_what_is_held_at_a_time_is_bounded(kind, monkeypatch):
    tokens, largest = Tokens(700), []

    def watched(a, b):
        largest.append(a.shape[0] * a.shape[1] * b.shape[1])
        return rows_products(a, b)

    rows_products = rows.products
    for module in (rows, non_causal):
        monkeypatch.setattr(module, "products", watched)
        monkeypatch.setattr(module, "ROOM", GROUP * non_causal.CHUNK**2)
    tokens.gather(kind(700, CONFIG))
    assert max(largest) <= rows.ROOM
    assert len(largest) > HEADS


def test_every_scorer_that_needs_the_prefill_has_a_gatherer():
    assert set(GATHERERS) == {spec.name for spec in SCORERS.values() if spec.needs == "prefill"}
    assert all("gathered" in SCORERS[name].reads for name in GATHERERS)
