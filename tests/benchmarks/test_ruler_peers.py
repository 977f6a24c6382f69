"""kvpress on a tiny random model: the right number of tokens is kept, and the full cache answers as generate does."""

import os
from pathlib import Path

import pytest
import torch
from ruler.generate import Rows
from ruler.peers import PRESSES, Peer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

MODEL = Path(os.environ.get("ADAKV_TEST_MODEL") or "~/.cache/adakv-sglang/smollm2-135m-instruct").expanduser()
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    assert (MODEL / "ready").is_file(), f"{MODEL}: expected the small model; run `make setup`"
    folder, tokenizer = tmp_path_factory.mktemp("tiny"), AutoTokenizer.from_pretrained(MODEL)
    torch.manual_seed(0)
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    model = LlamaForCausalLM(LlamaConfig(**ids, **SIZES, **HEADS, attention_bias=True))
    for layer in model.model.layers:  # queries of all tokens lie on one side, as kvpress' masks need it
        layer.self_attn.q_proj.bias.data.view(4, 8)[:, 3] = 1.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Peer(str(folder))


@pytest.fixture
def sample(peer, data):
    return next(Rows(("qa_2",), 1, 600, 0, data).samples(peer.tokenizer))


def test_the_full_cache_answers_as_transformers_does(peer, sample):
    ids = torch.tensor([sample.prompt.context + sample.prompt.question])
    new = sample.row.max_new_tokens
    with torch.no_grad():
        expected = peer.model.generate(ids, max_new_tokens=new, do_sample=False)[0, ids.shape[1] :]
    text, kept = peer.answer(sample, "FULL", 1.0)
    assert kept == len(sample.prompt.context)
    assert text == peer.tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.parametrize("method", PRESSES)
def test_every_press_keeps_its_share(peer, sample, method):
    text, kept = peer.answer(sample, method, 0.5)
    assert abs(kept - 0.5 * len(sample.prompt.context)) <= 1, (method, kept)
    assert (text, kept) == peer.answer(sample, method, 0.5)
