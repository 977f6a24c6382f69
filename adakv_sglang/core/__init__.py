"""The algorithm: tensors in, tensors out; no SGLang."""

from adakv_sglang.core.budgets import allocate, allocate_budgets
from adakv_sglang.core.contexts import Context, ContextKey, ContextRegistry
from adakv_sglang.core.lanes import LaneGeometry, LanePool
from adakv_sglang.core.pages import compact_, lay_out_pages, plan_compaction
from adakv_sglang.core.pipeline import compress_prefix
from adakv_sglang.core.scorers import LayerInputs, score_layer
from adakv_sglang.core.selection import select_tokens
from adakv_sglang.core.types import (
    CompactionPlan,
    CompressedPrefix,
    HeadBudgets,
    KeptTokens,
    PageLists,
    Scores,
    WindowQueries,
)

__all__ = [
    "CompactionPlan",
    "CompressedPrefix",
    "Context",
    "ContextKey",
    "ContextRegistry",
    "HeadBudgets",
    "KeptTokens",
    "LaneGeometry",
    "LanePool",
    "LayerInputs",
    "PageLists",
    "Scores",
    "WindowQueries",
    "allocate",
    "allocate_budgets",
    "compact_",
    "compress_prefix",
    "lay_out_pages",
    "plan_compaction",
    "score_layer",
    "select_tokens",
]
