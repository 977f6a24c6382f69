"""The live compressed contexts of one rank: which prefix leads to which pages."""

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch

from adakv_sglang.config import AdaKVConfig
from adakv_sglang.core.types import CompressedPrefix

NAMESPACE_MARK = "\x1fadakv:"
Origin = Literal["api", "request", "automatic"]  # who asks for contexts: a route, a request, or nobody


@dataclass(frozen=True, slots=True)
class ContextKey:
    """What identifies a prefix: its tokens (int64, little endian, packed) and its cache namespace."""

    tokens: bytes = field(repr=False)
    extra_key: str | None
    cache_salt: str | None
    _ids: dict[AdaKVConfig, str] = field(init=False, default_factory=dict, repr=False, compare=False)

    @property
    def num_tokens(self) -> int:
        """Length of the prefix."""
        return len(self.tokens) // 8

    def token_ids(self) -> "array[int]":
        """The tokens, a copy."""
        return array("q", self.tokens)

    def head(self, count: int) -> list[int]:
        """The first tokens, at most `count`."""
        return memoryview(self.tokens).cast("q")[:count].tolist()

    def begins(self, tokens: "array[int]") -> bool:
        """Whether `tokens`, of type code q and at least as many, start with this prefix; nothing is copied."""
        known, length = memoryview(self.tokens).cast("q"), self.num_tokens
        if any(tokens[place] != known[place] for place in (length - 1, length // 2)):
            return False  # most other prefixes differ here
        return memoryview(tokens)[:length] == known

    def namespace(self, context_id: str) -> str:
        """Extra key of this prefix as the context of that name."""
        return f"{self.extra_key or ''}{NAMESPACE_MARK}{context_id}"

    def context_id(self, config: AdaKVConfig) -> str:
        """Name of this prefix compressed with `config`: the same on every rank and after a restart.

        Every token is read for it, once: waiting requests ask in every step of the scheduler.
        """
        if config not in self._ids:
            self._ids[config] = self._digest(config)
        return self._ids[config]

    def _digest(self, config: AdaKVConfig) -> str:
        made = (config.keep_ratio, config.allocator, config.alpha, config.window, config.pooling)
        digest = hashlib.sha256(repr((self.extra_key, self.cache_salt, *made)).encode())
        digest.update(
            repr((config.kernel_size, config.sinks, config.group_reduction, config.scorer)).encode()
        )
        digest.update(repr((config.min_retained, config.max_bound, config.protect)).encode())
        digest.update(self.tokens)
        return digest.hexdigest()[:24]


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """A compressed context in use. slots: int64 `[B]`, the token slots it owns in the pool.

    handle: small positive integer that names it on this rank; 0 means none.
    """

    context_id: str
    handle: int
    key: ContextKey
    config: AdaKVConfig
    slots: torch.Tensor
    prefix: CompressedPrefix
    origin: Origin = "request"

    @property
    def namespace(self) -> str:
        """Extra key under which the context's node, and the suffixes computed on it, lie in the tree."""
        return self.key.namespace(self.context_id)


@dataclass(slots=True)
class ContextRegistry:
    """Publishes, finds and drops contexts.

    `version` changes with every change, so that a caller may remember a lookup. A retired context is
    no longer found by new requests but stays until it is dropped.
    """

    version: int = 0
    _by_namespace: dict[str, Context] = field(default_factory=dict)
    _by_scope: dict[tuple[str | None, str | None], list[Context]] = field(default_factory=dict)
    _handles: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self._by_namespace)

    def __iter__(self) -> Iterator[Context]:
        return iter(self._by_namespace.values())

    def free_handle(self) -> int:
        """Smallest positive integer that names no live context."""
        handle = 1
        while handle in self._handles:
            handle += 1
        return handle

    def publish(self, context: Context) -> None:
        """Make a context visible; contexts of the same prefix with other settings are retired.

        Raises ValueError if its id or handle is in use.
        """
        if context.namespace in self._by_namespace or context.handle in self._handles:
            raise ValueError(f"context {context.context_id} or handle {context.handle} is in use")
        self._by_namespace[context.namespace] = context
        self._handles.add(context.handle)
        self._show(context)

    def find(
        self, tokens: "array[int]", limit: int, extra_key: str | None, cache_salt: str | None
    ) -> Context | None:
        """The longest visible context that the first `limit` of `tokens` start with, in exactly this namespace.

        tokens: int64 (type code q), read in place: a prompt may be long, and this runs for every request.
        """
        for context in self._by_scope.get((extra_key, cache_salt), ()):
            if context.key.num_tokens <= limit and context.key.begins(tokens):
                return context
        return None

    def recall(self, key: ContextKey, config: AdaKVConfig) -> Context | None:
        """The live context of exactly this prefix made with exactly these settings; visible from now on."""
        context = self._by_namespace.get(key.namespace(key.context_id(config)))
        if context is not None and not self.is_visible(context):
            self._show(context)
        return context

    def of_prefix(self, key: ContextKey) -> Context | None:
        """The visible context of exactly this prefix, whatever its settings."""
        scope = self._by_scope.get((key.extra_key, key.cache_salt), ())
        return next((context for context in scope if context.key == key), None)

    def in_namespace(self, extra_key: str | None) -> Context | None:
        """The live context whose tree namespace this is, visible or retired."""
        return self._by_namespace.get(extra_key) if extra_key else None

    def is_visible(self, context: Context) -> bool:
        """Whether new requests find the context."""
        scope = self._by_scope.get((context.key.extra_key, context.key.cache_salt), ())
        return any(other is context for other in scope)

    def _show(self, context: Context) -> None:
        scope = self._by_scope.setdefault((context.key.extra_key, context.key.cache_salt), [])
        scope[:] = [other for other in scope if other.key.tokens != context.key.tokens]
        scope.append(context)
        scope.sort(key=lambda other: -other.key.num_tokens)
        self.version += 1

    def retire(self, context: Context) -> None:
        """Hide a context from new requests."""
        scope = self._by_scope.get((context.key.extra_key, context.key.cache_salt), [])
        scope[:] = [other for other in scope if other is not context]
        self.version += 1

    def drop(self, context: Context) -> None:
        """Forget a context; its slots are the caller's to free."""
        self.retire(context)
        if not self._by_scope.get((context.key.extra_key, context.key.cache_salt), True):
            del self._by_scope[context.key.extra_key, context.key.cache_salt]
        del self._by_namespace[context.namespace]
        self._handles.discard(context.handle)

    def clear(self) -> None:
        """Forget everything without freeing: the pool was cleared as a whole."""
        self._by_namespace.clear()
        self._by_scope.clear()
        self._handles.clear()
        self.version += 1
