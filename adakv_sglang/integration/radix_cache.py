"""SGLang's unified radix cache, extended by compressed contexts. The tree decides, core computes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams, MatchResult
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from adakv_sglang.config import AdaKVConfig
from adakv_sglang.core.contexts import ContextKey, ContextRegistry
from adakv_sglang.core.lanes import LanePool
from adakv_sglang.integration.audit import audit_slots
from adakv_sglang.integration.compressor import Compressor, Refusal
from adakv_sglang.integration.model_parts import ModelParts
from adakv_sglang.integration.plain_paths import PlainPaths
from adakv_sglang.integration.request_state import RequestState, RequestStates
from adakv_sglang.integration.routing import RequestRouter


class AdaKVRadixCache(UnifiedRadixCache):  # type: ignore[misc]
    """A compressed context is a node of N tokens in its own namespace that owns B token slots.

    Requests whose tokens start with a context are matched in its namespace; all others, and running
    requests, keep the plain path. Contexts are made in `run_preparations`, between batches.
    """

    def __init__(
        self,
        params: Any,
        *,
        config: AdaKVConfig,
        contexts: ContextRegistry,
        states: RequestStates,
        pool: LanePool,
        forward_stream: Any = None,
        implementation: Mapping[str, str] | None = None,
        model_parts: ModelParts | None = None,
    ) -> None:
        self.implementation = dict(implementation or {})  # what serves attention, for the server's state
        self.forward_stream = forward_stream  # None where there are no streams
        self.contexts = contexts
        self.pool = pool
        self.config = config
        self.states = states
        self.model_parts = model_parts or ModelParts()
        self._router = RequestRouter(config, contexts, states, pool.geometry.num_layers)
        self._preparing: list[RequestState] = []
        self._unrepeated: list[tuple[RequestState, str]] = []
        self.plain_paths = PlainPaths(self)
        super().__init__(params)
        self._compressor = Compressor(self)

    def match_prefix(self, params: MatchPrefixParams) -> MatchResult:
        """Match where the router sends the request."""
        routed = self._router.route(params)
        result = super().match_prefix(routed)
        state = self.states.of(params.req) if params.req is not None else None
        context = state.context if state is not None else None
        if state is None or context is None or result.device_prefix_len >= context.prefix.num_tokens:
            return result
        return super().match_prefix(self._router.undo(routed, state, context))

    def match_exact(self, key: ContextKey) -> MatchResult:
        """What the tree has of a context's exact tokens, for no request."""
        exact = RadixKey(key.token_ids(), key.extra_key, cache_salt=key.cache_salt)
        return self.match_prefix(MatchPrefixParams(key=exact))

    def touch_prefix(self, key: Any) -> None:
        """Refresh a waiting request's path, as ever, but never walk into a part of a context."""
        if self._router.covers(key):
            super().touch_prefix(key)

    def checkpoint(self, req: Any, *, up_to: int, **kwargs: Any) -> None:
        """Insert as ever; then queue the request's order if its whole context is in the tree now."""
        super().checkpoint(req, up_to=up_to, **kwargs)
        state = self.states.of(req)
        if state is None:
            return
        if state.order is not None:
            if up_to >= state.order.key.num_tokens and state.order.window.is_complete:
                self._queue(state, req.rid)
        elif state.context is None and req.finished() and len(self.contexts) > 0:
            self._release_superseded(req, up_to)

    def _queue(self, state: RequestState, rid: str) -> None:
        """Compress at the next safe point, or first let the context be repeated; once per order."""
        order = state.order
        if order is None or order.is_queued:
            return
        state.order = replace(order, is_queued=True)
        if order.reconstruction is None:
            self._preparing.append(state)
        else:
            self._unrepeated.append((state, rid))

    def take_unrepeated(self) -> list[tuple[RequestState, str]]:
        """Requests, with their ids, whose contexts are in the tree and wait to be repeated by the model."""
        taken, self._unrepeated = self._unrepeated, []
        return taken

    def _release_superseded(self, req: Any, up_to: int) -> None:
        """A request ended on an exact path that a context has replaced meanwhile: nobody will match it again."""
        tokens = req.full_untruncated_fill_ids
        if self.contexts.find(tokens, up_to, req.extra_key, req.cache_salt) is not None:
            self.plain_paths.release_later(req.last_node)

    def run_preparations(self) -> None:
        """Compress what is queued, unless the allocator is holding frees back just now."""
        if self.token_to_kv_pool_allocator.free_group is not None:
            return
        waiting, self._preparing = self._preparing, []
        for state in waiting:
            self._prepare(state)
        self.plain_paths.release_unused()

    def flush_pending_backups(self) -> None:
        """SGLang calls this after every batch result, outside any free group: the safe point."""
        super().flush_pending_backups()
        if self._preparing or self.plain_paths:
            self.run_preparations()

    def reset(self) -> None:
        """Forget all contexts without freeing: the caller clears the allocator as a whole."""
        self.contexts.clear()
        self.plain_paths.clear()
        self._preparing.clear()
        self._unrepeated.clear()
        super().reset()

    def evict_leaf(self, node_id: int) -> None:
        """Evict one unlocked leaf of the tree."""
        tracker = dict.fromkeys(self.tree_components, 0)
        self._evict_device_leaf(node_id, tracker)

    def agree(self, succeeded: bool) -> bool:
        """Whether this step succeeded on every attention rank; no rank decides alone."""
        flag = torch.tensor(int(succeeded))
        self._all_reduce_attn_groups(flag, torch.distributed.ReduceOp.MIN)
        return bool(flag.item())

    def agree_most(self, number: int) -> int:
        """The largest of all attention ranks' numbers."""
        largest = torch.tensor(number)
        self._all_reduce_attn_groups(largest, torch.distributed.ReduceOp.MAX)
        return int(largest.item())

    def add_up(self, numbers: Sequence[float]) -> list[float]:
        """The sums over all attention ranks; as many numbers on each."""
        sums = torch.tensor(numbers, dtype=torch.float64)
        self._all_reduce_attn_groups(sums, torch.distributed.ReduceOp.SUM)
        return [float(each) for each in sums]

    def finish_repeated(self, state: RequestState) -> None:
        """The model has repeated this request's context: compress it."""
        self._preparing.append(state)
        self.run_preparations()

    def _prepare(self, state: RequestState) -> None:
        order, state.order, state.wanted = state.order, None, None
        if order is None:
            return
        try:
            state.made = self._compressor.run(order)
        except Refusal as refusal:
            state.refusal = str(refusal)
        if self.config.debug_checks:
            audit_slots(self)
