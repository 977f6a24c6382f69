"""Carries out one order: from the plain path in the tree to a published context, or a reason why not."""

import logging
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from sglang.srt.mem_cache.base_prefix_cache import InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.common import evict_from_tree_cache
from sglang.srt.mem_cache.radix_cache import RadixKey

from adakv_sglang.core.contexts import Context, ContextKey
from adakv_sglang.core.pipeline import ScorerExtras, compress_prefix
from adakv_sglang.core.types import CompressedPrefix
from adakv_sglang.integration.request_state import PrepareOrder

if TYPE_CHECKING:
    from adakv_sglang.integration.radix_cache import AdaKVRadixCache

logger = logging.getLogger(__name__)


class Refusal(Exception):
    """The context stays uncompressed; the message tells the caller why and what to change."""


class Compressor:
    """Runs at the scheduler's safe point: no allocator free group and no tree insertion is open."""

    def __init__(self, tree: "AdaKVRadixCache") -> None:
        self._tree = tree
        self._allocator = tree.token_to_kv_pool_allocator

    def run(self, order: PrepareOrder) -> Context:
        """Compress, publish and insert; raise Refusal with nothing changed but evictions."""
        existing = self._tree.contexts.recall(order.key, order.config)
        plain = _radix_key(order.key, order.key.extra_key)
        match = self._tree.match_prefix(MatchPrefixParams(key=plain))
        if existing is not None:  # two orders were under way: this one's exact copy is of no use either
            if match.device_prefix_len == order.key.num_tokens:
                self._tree.plain_paths.release_later(match.last_device_node)
            return existing
        if match.device_prefix_len != order.key.num_tokens:
            raise Refusal("the context left the cache before it could be compressed; send it again")
        lock = self._tree.lock(match.last_device_node)
        try:
            source = self._tree.path_device_indices(match.last_device_node)
            context = self._compress(order, source)
        finally:
            self._tree.unlock(lock)
        self._tree.plain_paths.release_later(match.last_device_node)
        return context

    def _compress(self, order: PrepareOrder, source: torch.Tensor) -> Context:
        slots = self._allocate(order.config.num_slots(order.key.num_tokens), order.key.num_tokens)
        prefix, failure = self._attempt(order, source, slots)
        if not self._tree.agree(prefix is not None) or prefix is None:
            self._allocator.free(slots)
            raise Refusal(f"compression failed ({failure or 'on another rank'}); the exact cache is used")
        contexts = self._tree.contexts
        context = Context(
            context_id=order.key.context_id(order.config),
            handle=contexts.free_handle(),
            key=order.key,
            config=order.config,
            slots=slots,
            prefix=prefix,
        )
        contexts.publish(context)  # before the insertion: the ledger asks for it there
        placeholders = torch.zeros_like(source)
        key = _radix_key(order.key, context.namespace)
        self._tree.insert(InsertParams(key=key, value=placeholders))
        return context

    def _attempt(
        self, order: PrepareOrder, source: torch.Tensor, slots: torch.Tensor
    ) -> tuple[CompressedPrefix | None, str]:
        """Everything that may fail on one rank alone; whatever it is, the exact cache stays in use."""
        try:
            with self._on_forward_stream():
                queries, extras = order.window.queries(), self._extras(order)
                return compress_prefix(queries, self._tree.pool, source, slots, order.config, extras), ""
        except Exception as error:
            logger.exception("compressing a context of %d tokens failed", order.key.num_tokens)
            return None, f"{type(error).__name__}: {error}"

    def _extras(self, order: PrepareOrder) -> ScorerExtras:
        parts, gatherer = self._tree.model_parts, order.reconstruction or order.gatherer
        return ScorerExtras(
            parts.rotary, parts.output_weight, gatherer.result if gatherer is not None else None
        )

    @contextmanager
    def _on_forward_stream(self) -> Iterator[None]:
        """Read and write the pool after the batches in flight and before the next: on the stream they run on."""
        forward = self._tree.forward_stream
        if forward is None:
            yield
            return
        current = torch.cuda.current_stream()
        forward.wait_stream(current)
        try:
            with torch.cuda.stream(forward):
                yield
        finally:
            current.wait_stream(forward)

    def _allocate(self, num_slots: int, num_tokens: int) -> torch.Tensor:
        """Slots for the context, evicting others if that suffices; the plain path is locked meanwhile."""
        room = self._allocator.available_size() + self._tree.evictable_size()
        slots = None
        if room >= num_slots:
            evict_from_tree_cache(self._tree, num_slots)
            slots = self._allocator.alloc(num_slots)
        if slots is None:
            raise Refusal(
                f"compressing needs {num_slots} token slots beside the {num_tokens} of the context itself, "
                f"and {room} of {self._allocator.size} are free or evictable; lower keep_ratio, wait for "
                "running requests, or give the server a larger pool (--mem-fraction-static, --max-total-tokens)"
            )
        allocated: torch.Tensor = slots.clone()  # the allocator's answer is a view of its whole free list
        return allocated


def _radix_key(key: ContextKey, extra_key: str | None) -> RadixKey:
    tokens = array("q")
    tokens.frombytes(key.tokens)
    return RadixKey(tokens, extra_key, cache_salt=key.cache_salt)
