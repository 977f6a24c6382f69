"""The story in one page: how a context is compressed."""

import torch

from adakv_sglang.config import AdaKVConfig
from adakv_sglang.core.budgets import allocate
from adakv_sglang.core.lanes import LanePool
from adakv_sglang.core.pages import compact_, lay_out_pages, plan_compaction
from adakv_sglang.core.scorers import LayerInputs, score_layer
from adakv_sglang.core.selection import select_tokens
from adakv_sglang.core.types import CompressedPrefix, WindowQueries


def compress_prefix(
    queries: WindowQueries,
    pool: LanePool,
    source_slots: torch.Tensor,
    owned_slots: torch.Tensor,
    config: AdaKVConfig,
) -> CompressedPrefix:
    """Copy what each head needs of a context into fewer token slots of the same pool, in place.

    queries: of the context's last tokens. source_slots: int64 `[N]`, where the plain context lies;
    read only. owned_slots: int64 `[B]`, disjoint from them; every layer's heads share them.
    Raises ValueError if the queries are not one window for every layer of the pool.
    """
    expected = (pool.geometry.num_layers, config.window)
    if tuple(queries.query.shape[:2]) != expected or len(queries.scaling) != expected[0]:
        raise ValueError(
            f"queries: expected [layers, window] = {list(expected)}, got {list(queries.query.shape)}"
        )
    inputs = (
        LayerInputs(layer, query, pool.keys(layer), pool.values(layer), scaling, source_slots)
        for layer, (query, scaling) in enumerate(zip(queries.query, queries.scaling, strict=True))
    )
    scored = (score_layer(layer_inputs, config) for layer_inputs in inputs)
    kept = [
        select_tokens(scores, budgets, config)
        for scores, budgets in allocate(scored, pool.geometry.num_layers, owned_slots.numel(), config)
    ]
    pages = lay_out_pages(kept, owned_slots, pool.geometry)
    compact_(pool, plan_compaction(kept, source_slots, pages, pool.geometry))
    return CompressedPrefix(
        num_tokens=source_slots.numel(),
        num_slots=owned_slots.numel(),
        pages=pages,
        head_budgets=tuple(tuple(torch.tensor(layer.indptr).diff().tolist()) for layer in kept),
        retained_mass=tuple(tuple(layer.retained_mass.tolist()) for layer in kept),
    )
