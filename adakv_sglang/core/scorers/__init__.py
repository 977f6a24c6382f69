"""How important every token is to every KV head: one scorer per file, all behind one signature."""

from collections.abc import Callable
from typing import Final

import torch

from adakv_kernels import window_scores
from adakv_sglang.config import AdaKVConfig
from adakv_sglang.core.scorers.inputs import LayerInputs
from adakv_sglang.core.scorers.keydiff import keydiff_scores
from adakv_sglang.core.scorers.knorm import knorm_scores
from adakv_sglang.core.scorers.lagkv import lagkv_scores
from adakv_sglang.core.scorers.random import random_scores
from adakv_sglang.core.scorers.snapkv import snapkv_scores
from adakv_sglang.core.scorers.streaming import streaming_scores
from adakv_sglang.core.types import Scores

__all__ = ["SCORERS", "LayerInputs", "score_layer"]

# From a layer's inputs and the window's attention `[H, N]` to values float32 `[H, N]`, higher kept first.
Scorer = Callable[[LayerInputs, torch.Tensor, AdaKVConfig], torch.Tensor]

SCORERS: Final[dict[str, Scorer]] = {
    "snapkv": snapkv_scores,
    "keydiff": keydiff_scores,
    "knorm": knorm_scores,
    "lagkv": lagkv_scores,
    "streaming": streaming_scores,
    "random": random_scores,
}


def score_layer(inputs: LayerInputs, config: AdaKVConfig) -> Scores:
    """Score every token of one layer with the scorer named in `config`.

    Whatever the scorer, `mass` is the attention that the window pays: the measure of what is lost.
    """
    mass = window_scores(inputs.query, inputs.key, scaling=inputs.scaling, slots=inputs.slots)
    return Scores(inputs.layer, SCORERS[config.scorer](inputs, mass, config), mass)
