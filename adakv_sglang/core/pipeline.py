"""The story in one page: how a context is compressed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from adakv_sglang.config import AdaKVConfig
from adakv_sglang.core.budgets import allocate
from adakv_sglang.core.lanes import LanePool
from adakv_sglang.core.pages import compact_, lay_out_pages, plan_compaction
from adakv_sglang.core.rotary import Rotary
from adakv_sglang.core.scorers import LayerInputs, QuerySample, score_layer
from adakv_sglang.core.selection import select_tokens
from adakv_sglang.core.types import CompressedPrefix, WindowQueries


@dataclass(frozen=True, slots=True)
class ScorerExtras:
    """What only some scorers read, by layer; see `LayerInputs`. None where it cannot be had."""

    rotary: Rotary | None = None
    output_weight: Callable[[int], torch.Tensor | None] = lambda _layer: None
    gathered: Callable[[int], torch.Tensor] | None = None


NO_EXTRAS: Final = ScorerExtras()


def compress_prefix(
    queries: WindowQueries,
    pool: LanePool,
    source_slots: torch.Tensor,
    owned_slots: torch.Tensor,
    config: AdaKVConfig,
    extras: ScorerExtras = NO_EXTRAS,
) -> CompressedPrefix:
    """Copy what each head needs of a context into fewer token slots of the same pool, in place.

    queries: of the context's last tokens, the window's and maybe some before it, which serve as a sample of all.
    source_slots: int64 `[N]`, where the plain context lies;
    read only. owned_slots: int64 `[B]`, disjoint from them; every layer's heads share them.
    Raises ValueError if the queries are not one window for every layer of the pool, or if the scorer reads
    something that `extras` lack.
    """
    num_layers, count = pool.geometry.num_layers, queries.query.shape[1]
    if len(queries.query) != num_layers or len(queries.scaling) != num_layers or count < config.window:
        raise ValueError(
            f"queries: expected [layers, window or more] = [{num_layers}, {config.window}], "
            f"got {list(queries.query.shape)}"
        )
    inputs = (_inputs(layer, queries, pool, source_slots, config, extras) for layer in range(num_layers))
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


def _inputs(
    layer: int,
    queries: WindowQueries,
    pool: LanePool,
    slots: torch.Tensor,
    config: AdaKVConfig,
    extras: ScorerExtras,
) -> LayerInputs:
    query, sample = queries.query[layer], None
    if len(query) > config.window:
        positions = torch.arange(slots.numel() - len(query), slots.numel(), device=slots.device)
        sample = QuerySample(query, positions)
    return LayerInputs(
        layer=layer,
        query=query[len(query) - config.window :],
        key=pool.keys(layer),
        value=pool.values(layer),
        scaling=queries.scaling[layer],
        slots=slots,
        rotary=extras.rotary,
        output_weight=extras.output_weight(layer),
        gathered=extras.gathered(layer) if extras.gathered is not None else None,
        sample=sample,
    )
