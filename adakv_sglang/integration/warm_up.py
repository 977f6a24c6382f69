"""Compiles kernels before the first request, so that none of them waits for it."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import torch

from adakv_kernels import copy_lanes_, window_scores
from adakv_kernels.prefix_batch import PrefixTables, add_prefix_
from adakv_sglang.config import AdaKVConfig
from adakv_sglang.core.lanes import LanePool
from adakv_sglang.core.scorers import SCORERS, LayerInputs, score_layer
from adakv_sglang.integration.model_parts import ModelParts

logger = logging.getLogger(__name__)
BETWEEN: Final = 64  # tokens between sinks and window of the context that stands for all


def compile_attention(lanes: LanePool, tables: Iterable[PrefixTables]) -> None:
    """Launch the prefix attention of these tables on one row without a context; nothing is changed."""
    geometry = lanes.geometry
    for table in tables:
        table.clear()
        shape = (1, geometry.num_heads * table.query_group, geometry.head_dim)
        query = torch.zeros(shape, dtype=table.dtype, device=table.device)
        lse = torch.zeros(shape[:2], device=table.device)
        add_prefix_(
            *(torch.zeros_like(query), lse, query, lanes.kv, table),
            layer=0,
            value_offset=geometry.value_offset,
            scaling=1.0,
        )


def compile_compression(
    lanes: LanePool, query_group: int, dtype: torch.dtype, config: AdaKVConfig, parts: ModelParts
) -> None:
    """Launch what compresses contexts with these settings, on the pool's padding slot, which is copied onto itself."""
    geometry, device = lanes.geometry, lanes.kv.device
    shape = (config.window, geometry.num_heads * query_group, geometry.head_dim)
    query = torch.zeros(shape, dtype=dtype, device=device)
    padding = torch.zeros(config.sinks + config.window + BETWEEN, dtype=torch.int64, device=device)
    inputs = LayerInputs(
        *(0, query, lanes.keys(0), lanes.values(0), 1.0, padding, parts.rotary, parts.output_weight(0)),
        gathered=torch.zeros(geometry.num_heads, len(padding), device=device),
    )
    for name in dict.fromkeys((config.scorer, config.prepared_scorer)):
        try:
            _score(inputs, replace(config, scorer=name))
        except Exception:  # a context that cannot be made is served exactly, and so the server starts
            logger.exception("adakv: the scorer %s fails on this machine; its contexts will be refused", name)
    lane = geometry.lanes(0, padding[:1], 0).to(torch.int32)
    copy_lanes_(lanes.kv, lane, lane, value_offset=geometry.value_offset)


def _score(inputs: LayerInputs, config: AdaKVConfig) -> None:
    """Launch what a scorer does, and what reads the repetition for it; nothing if the model lacks what it reads."""
    scorer = SCORERS[config.scorer]
    if all(getattr(inputs, field) is not None for field in scorer.reads):
        score_layer(inputs, config)
    if scorer.needs == "reconstruction":
        window_scores(inputs.query, inputs.key, scaling=1.0, slots=inputs.slots, reduction="peak")
