"""What KVzip reads while a context is repeated, against one query at a time in float64 and against kvpress."""

from types import SimpleNamespace

import pytest
import torch
from helpers import assert_close, generator
from hypothesis import given
from hypothesis import strategies as st
from kvpress import KVzipPress
from kvpress.presses import kvzip_press
from transformers import AttentionInterface, DynamicCache, LlamaConfig, LlamaForCausalLM

from adakv_sglang import AdaKVConfig
from adakv_sglang.core.gather import QueryPiece, ReconstructionGatherer, cut_chunks

HEADS, GROUP, DIM, SCALING = 2, 3, 8, 0.5
NUM_TOKENS, SINKS = 50, 3
CONFIG = AdaKVConfig(sinks=SINKS, window=7)
CHUNKS = cut_chunks(NUM_TOKENS, 20)  # two whole ones and a rest


class Repeated:
    """A context and requests that repeat its chunks, each in slots of its own in a pool of NaN.

    key: of the context, `[N, H, D]`. query, own: of each request behind the context, `[n, HQ, D]`, `[n, H, D]`.
    """

    def __init__(self, chunks=CHUNKS, num_tokens=NUM_TOKENS, gen=None):
        self.num_tokens, self.chunks = num_tokens, chunks
        self.key = torch.randn(num_tokens, HEADS, DIM, generator=gen)
        counts = [
            end - start + 2 + chunk for chunk, (start, end) in enumerate(chunks)
        ]  # the words: 2, 3, ...
        self.query = [torch.randn(count, HEADS * GROUP, DIM, generator=gen) for count in counts]
        self.own = [torch.randn(count, HEADS, DIM, generator=gen) for count in counts]

    def end(self, chunk):
        """Behind the last position of the request."""
        return self.num_tokens + len(self.query[chunk])

    def piece(self, chunk, begin, end, layer=0):
        """Queries at the positions `[begin, end)` of a request, in memory of this call alone."""
        keys = torch.cat([self.key, self.own[chunk]])[:end]
        slots = torch.randperm(2 * end)[:end]
        pool = torch.full((2 * end, HEADS, DIM), float("nan"))
        pool[slots] = keys
        query = self.query[chunk][begin - self.num_tokens : end - self.num_tokens].clone()
        return QueryPiece(layer, begin, query, pool, pool, slots, SCALING)

    def feed(self, gatherer, chunk, bounds=(), layer=0):
        """One request, cut at these positions; what was read is overwritten afterwards."""
        bounds = [self.num_tokens, *sorted(bounds), self.end(chunk)]
        for begin, end in zip(bounds, bounds[1:], strict=False):
            piece = self.piece(chunk, begin, end, layer)
            gatherer.add(piece, chunk, self.end(chunk))
            piece.query.fill_(float("nan"))
            piece.key.fill_(float("nan"))

    def gatherer(self, config=CONFIG):
        return ReconstructionGatherer(self.num_tokens, config, self.chunks)

    def want(self, sinks=SINKS):
        """Float64 `[H, N]`: one query head at one position at a time."""
        scores = torch.zeros(HEADS, self.num_tokens, dtype=torch.float64)
        for (start, stop), query, own in zip(self.chunks, self.query, self.own, strict=True):
            first = min(sinks, start)
            for step in range(len(query)):
                seen = torch.cat([self.key[:first], self.key[start:stop], own[: step + 1]]).double()
                for row in range(HEADS * GROUP):
                    head = row // GROUP
                    attention = (seen[:, head] @ query[step, row].double() * SCALING).softmax(dim=0)
                    part = attention[first : first + stop - start]
                    scores[head, start:stop] = torch.maximum(scores[head, start:stop], part)
        return scores


@pytest.mark.parametrize("sinks", [0, 3, 30], ids=lambda sinks: f"{sinks} sinks")
def test_every_token_gets_its_largest_attention_while_its_chunk_is_repeated(sinks):
    repeated = Repeated()
    gatherer = repeated.gatherer(AdaKVConfig(sinks=sinks, window=7))
    for chunk in range(len(CHUNKS)):
        repeated.feed(gatherer, chunk)
    got = gatherer.result(0)
    assert got.dtype == torch.float32
    assert_close("scores", got, repeated.want(sinks), 1e-6)


@given(data=st.data())
def test_pieces_may_be_cut_anywhere_and_come_again(data):
    size = data.draw(st.integers(1, NUM_TOKENS))
    chunks = cut_chunks(NUM_TOKENS, size)[:6]
    chunks = (*chunks[:-1], (chunks[-1][0], NUM_TOKENS))
    repeated = Repeated(chunks, gen=generator(data.draw(st.integers(0, 2**16))))
    gatherer = repeated.gatherer()
    for chunk in data.draw(st.permutations(range(len(chunks)))):
        inside = st.integers(NUM_TOKENS + 1, repeated.end(chunk) - 1)
        if (stop := data.draw(st.none() | inside)) is not None:  # retracted there, and computed anew
            gatherer.add(repeated.piece(chunk, NUM_TOKENS, stop), chunk, repeated.end(chunk))
        repeated.feed(gatherer, chunk, data.draw(st.sets(inside, max_size=4)))
    assert_close("scores", gatherer.result(0), repeated.want(), 1e-6)


def test_layers_are_apart():
    pair = Repeated(), Repeated()
    gatherer = pair[0].gatherer()
    for chunk in range(len(CHUNKS)):
        for layer, repeated in enumerate(pair):
            repeated.feed(gatherer, chunk, layer=layer)
    for layer, repeated in enumerate(pair):
        assert_close(f"layer {layer}", gatherer.result(layer), repeated.want(), 1e-6)


@pytest.mark.parametrize(
    ("missing", "got"),
    [
        (lambda _: [], 0),
        (lambda r: [(0, NUM_TOKENS, r.end(0)), (2, NUM_TOKENS, r.end(2))], 2),
        (lambda r: [(0, NUM_TOKENS, r.end(0) - 1)], 0),
        (lambda r: [(0, NUM_TOKENS + 1, r.end(0))], 0),
        (lambda r: [(0, NUM_TOKENS, 60), (0, 61, r.end(0))], 0),
    ],
    ids=["nothing", "a chunk", "the end", "the beginning", "a gap"],
)
def test_what_is_missing_is_counted(missing, got):
    repeated, gatherer = Repeated(), Repeated().gatherer()
    for chunk, begin, end in missing(repeated):
        gatherer.add(repeated.piece(chunk, begin, end), chunk, repeated.end(chunk))
    with pytest.raises(
        ValueError, match=f"layer 0: expected all 3 chunks .* got {got}; send the context again"
    ):
        gatherer.result(0)


def test_one_layer_that_is_missing_is_no_result_of_another():
    repeated, gatherer = Repeated(), Repeated().gatherer()
    for chunk in range(len(CHUNKS)):
        repeated.feed(gatherer, chunk, layer=1)
    assert gatherer.result(1).shape == (HEADS, NUM_TOKENS)
    with pytest.raises(ValueError, match="layer 0: expected all 3 chunks"):
        gatherer.result(0)


def test_a_piece_that_failed_leaves_a_gap_until_it_comes_again(monkeypatch):
    repeated, gatherer = Repeated(), Repeated().gatherer()

    def fail(*_, **__):
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as patch:
        patch.setattr("adakv_sglang.core.gather.reconstruction.window_scores", fail)
        with pytest.raises(torch.OutOfMemoryError):
            gatherer.add(repeated.piece(0, NUM_TOKENS, 60), 0, repeated.end(0))
    gatherer.add(repeated.piece(0, 60, repeated.end(0)), 0, repeated.end(0))
    for chunk in (1, 2):
        repeated.feed(gatherer, chunk)
    with pytest.raises(ValueError, match="got 2"):
        gatherer.result(0)
    repeated.feed(gatherer, 0)  # retracted, and computed anew
    assert_close("scores", gatherer.result(0), repeated.want(), 1e-6)


@given(st.integers(1, 300), st.integers(1, 100))
def test_chunks_follow_one_another_and_only_the_last_is_shorter(num_tokens, size):
    chunks = cut_chunks(num_tokens, size)
    assert [position for bounds in chunks for position in range(*bounds)] == list(range(num_tokens))
    assert all(end - start == size for start, end in chunks[:-1])
    assert 0 < chunks[-1][1] - chunks[-1][0] <= size


# -- kvpress ------------------------------------------------------------------------------------------

BEGIN, WORDS, SUFFIX = 5, 6, 4  # tokens before the context, of an instruction, before the answer


class Words:
    """A tokenizer of three words, for kvpress: the beginning of the user's turn, instructions, the turn's end."""

    chat_template = "yes"

    @classmethod
    def from_pretrained(cls, _name):
        return cls()

    def apply_chat_template(self, messages, **_):
        return f"BEGIN{messages[0]['content']}END"

    def encode(self, text, **_):
        length = {"BEGIN": BEGIN, "END": SUFFIX}.get(text, WORDS + ("part" in text))
        return torch.arange(length).unsqueeze(0) + len(text)


class WatchedKVzip(KVzipPress):
    """Remembers its scores, `[layers, H, N]`, which it clears at the end."""

    def compress_post(self, model):
        self.found = self.score_val[:, 0].clone()


@pytest.fixture
def forwards(monkeypatch):
    """Every forward of a small random Llama under KVzipPress: per layer what reached attention; and its scores."""
    monkeypatch.setattr(kvzip_press, "AutoTokenizer", Words)
    seen = []

    def watch(module, query, key, value, attention_mask, **rest):
        seen.append((module.layer_idx, query[0].transpose(0, 1), key[0].transpose(0, 1), rest["scaling"]))
        return AttentionInterface()["sdpa"](module, query, key, value, attention_mask, **rest)

    AttentionInterface.register("adakv_watched_kvzip", watch)
    sizes = {"num_attention_heads": HEADS * GROUP, "num_key_value_heads": HEADS, "num_hidden_layers": 2}
    config = LlamaConfig(hidden_size=48, intermediate_size=32, vocab_size=128, head_dim=DIM, **sizes)
    model = LlamaForCausalLM(config).eval()
    for layer in model.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            torch.nn.init.normal_(projection.weight, std=2.0 * 48**-0.5)  # attention far from even
    model.set_attn_implementation("adakv_watched_kvzip")
    press = WatchedKVzip(compression_ratio=0.5, n_sink=SINKS, chunk_size=20)
    tokens = torch.randint(128, (1, BEGIN + NUM_TOKENS))
    with torch.no_grad(), press(model):
        model(input_ids=tokens, past_key_values=DynamicCache())
    return SimpleNamespace(seen=seen, found=press.found)


def test_scores_are_those_of_kvpress(forwards):
    """Its chunks begin behind the chat template's first words, which it does not score; ours at the first token.

    It repeats every chunk on the cache of the whole context, as our requests do, and its queries and keys are
    what transformers computed. Given its bounds, ours are its scores.
    """
    num_tokens = BEGIN + NUM_TOKENS
    chunks = tuple((BEGIN + start, BEGIN + end) for start, end in CHUNKS)
    gatherer = ReconstructionGatherer(num_tokens, CONFIG, chunks)
    repeats = forwards.seen[2:]  # the first forward of both layers is the context itself
    assert len(repeats) == 2 * len(chunks)
    for index, (layer, query, key, scaling) in enumerate(repeats):
        chunk = index // 2
        words = WORDS + SUFFIX + (1 + 8 if chunk else 0)
        assert len(query) == words + chunks[chunk][1] - chunks[chunk][0]
        middle, end = num_tokens + 7, len(key)
        context = torch.cat([key[:num_tokens], key[end - len(query) :]])  # its cache keeps no earlier request
        assert len(context) == num_tokens + len(query)
        for begin, stop in ((num_tokens, middle), (middle, len(context))):
            part = query[begin - num_tokens : stop - num_tokens]
            slots = torch.arange(stop)
            gatherer.add(
                QueryPiece(layer, begin, part, context, context, slots, scaling), chunk, len(context)
            )
    for layer in range(2):
        got, want = gatherer.result(layer), forwards.found[layer]
        assert_close(f"layer {layer}", got, want, 1e-6)
        assert got[:, :BEGIN].eq(0).all() and got[:, BEGIN:].min() > 0
        assert got.max() > 0.5, "attention is spread evenly: this compares nothing"
