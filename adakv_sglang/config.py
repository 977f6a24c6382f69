"""Settings: what the operator configures once and what a request may ask for. Standard library only."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Self

CONFIG_VARIABLE: Final = "ADAKV_SGLANG_CONFIG"
SCORERS: Final = (
    "snapkv",
    "keydiff",
    "knorm",
    "lagkv",
    "streaming",
    "random",
    "expected_attention",
    "critical",
    "defensive",
    "compactor",
    "h2o",
    "kvzip",
)
ALLOCATORS: Final = ("adakv", "cross-layer", "ada-pyramid", "pyramid", "uniform")
POOLINGS: Final = ("max", "mean", "none")
REDUCTIONS: Final = ("mean", "max")


class ConfigError(ValueError):
    """A setting or a request option is unknown or out of range; the message says what is allowed."""


@dataclass(frozen=True, slots=True)
class AdaKVConfig:
    """How contexts are compressed. Immutable; a compressed context remembers the one it was made with.

    keep_ratio: token slots a context keeps, as a share of its tokens, in (0, 1].
    scorer: what decides which tokens matter; one of SCORERS, each described in core/scorers with what it needs.
    allocator: "adakv" (budgets differ between the heads of a layer, arXiv 2407.11550), "cross-layer" (between
    all heads of all layers), "ada-pyramid" or "pyramid" (fewer from layer to layer, arXiv 2406.02069) or
    "uniform" (not at all).
    alpha: share of the budget that every head gets alike, in [0, 1]; 1 is uniform, 0 a pure ranking.
    window: number of last tokens of the context whose queries score the others; always kept.
    group_reduction: how the query heads of a KV head count together, "mean" or "max" of their scores.
    pooling, kernel_size: smoothing of the scores over positions; kernel_size is odd.
    sinks: number of first tokens that every head keeps.
    debug_checks: fill the pool's padding slot with NaN and recount the pool after every compression.
    """

    keep_ratio: float = 0.5
    scorer: str = "keydiff"
    allocator: str = "adakv"
    alpha: float = 0.2
    window: int = 32
    group_reduction: str = "mean"
    pooling: str = "max"
    kernel_size: int = 7
    sinks: int = 4
    debug_checks: bool = False

    def __post_init__(self) -> None:
        _check_number("keep_ratio", self.keep_ratio, 0.0, 1.0, exclude_low=True)
        _check_choice("scorer", self.scorer, SCORERS)
        _check_choice("allocator", self.allocator, ALLOCATORS)
        _check_number("alpha", self.alpha, 0.0, 1.0)
        _check_integer("window", self.window, 1, 1024)
        _check_choice("group_reduction", self.group_reduction, REDUCTIONS)
        _check_choice("pooling", self.pooling, POOLINGS)
        _check_integer("kernel_size", self.kernel_size, 1, 101)
        if self.kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size: expected an odd number, got {self.kernel_size}")
        _check_integer("sinks", self.sinks, 0, 4096)
        _check_flag("debug_checks", self.debug_checks)
        for name in ("keep_ratio", "alpha"):  # 1 and 1.0 are the same setting
            object.__setattr__(self, name, float(getattr(self, name)) + 0.0)

    @property
    def num_protected(self) -> int:
        """Tokens that every head keeps: the sinks and the window."""
        return self.sinks + self.window

    def num_slots(self, num_tokens: int) -> int:
        """Token slots that a context of `num_tokens` owns; a pure function, the same on every rank."""
        return min(num_tokens, math.ceil(round(self.keep_ratio * num_tokens, 6)))

    def obstacle(self, num_tokens: int) -> str | None:
        """Why a context of `num_tokens` cannot be compressed with these settings, or None."""
        if num_tokens <= self.num_protected:
            return (
                f"the context has {num_tokens} tokens; expected more than {self.num_protected} "
                f"({self.sinks} sinks + a window of {self.window}); send a longer context"
            )
        slots = self.num_slots(num_tokens)
        if slots < self.num_protected:
            return (
                f"keep_ratio {self.keep_ratio} of {num_tokens} tokens is {slots} slots, fewer than the "
                f"{self.num_protected} tokens always kept ({self.sinks} sinks + a window of {self.window}); "
                "raise keep_ratio or send a longer context"
            )
        return None

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any], source: str = "settings") -> Self:
        """Build from plain values; raise ConfigError on unknown keys and values out of range."""
        _check_keys(settings, [field.name for field in fields(cls)], source)
        try:
            return cls(**settings)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None

    @classmethod
    def from_environment(cls) -> Self:
        """Read `ADAKV_SGLANG_CONFIG`: inline JSON, or the path of a JSON file; defaults if it is unset."""
        text = os.environ.get(CONFIG_VARIABLE, "").strip()
        if not text:
            return cls()
        if not text.startswith("{"):
            try:
                text = Path(text).read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                problem = f"expected inline JSON or a readable UTF-8 file, got {text[:80]!r} ({error})"
                raise ConfigError(f"{CONFIG_VARIABLE}: {problem}") from None
        try:
            settings = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{CONFIG_VARIABLE}: not valid JSON ({error})") from None
        if not isinstance(settings, dict):
            raise ConfigError(f"{CONFIG_VARIABLE}: expected a JSON object, got {type(settings).__name__}")
        return cls.from_mapping(settings, CONFIG_VARIABLE)


@dataclass(frozen=True, slots=True)
class ContextRequest:
    """What one request asks for in `custom_params["adakv"]`.

    compress: prepare the start of this prompt as a context, unless it is one already.
    keep_ratio, scorer, allocator, alpha: override the server's settings for this context.
    context_tokens: the context ends after this many prompt tokens (default: all but the last).
    context_messages: chat only; the context ends after this many messages (default: all).
    """

    compress: bool = False
    keep_ratio: float | None = None
    scorer: str | None = None
    allocator: str | None = None
    alpha: float | None = None
    context_tokens: int | None = None
    context_messages: int | None = None

    def __post_init__(self) -> None:
        _check_flag("compress", self.compress)
        for name, low in (("context_tokens", 1), ("context_messages", 1)):
            if (value := getattr(self, name)) is not None:
                _check_integer(name, value, low, 2**31 - 1)
        self.configure(AdaKVConfig())
        self._check_combination()

    def _check_combination(self) -> None:
        given = [field.name for field in fields(self) if getattr(self, field.name) not in (None, False)]
        if given and not self.compress:
            raise ConfigError(f"{', '.join(given)}: expected compress: true beside it")
        if self.context_tokens is not None and self.context_messages is not None:
            raise ConfigError("context_tokens, context_messages: expected one of them, got both")

    def configure(self, config: AdaKVConfig) -> AdaKVConfig:
        """The server's settings with this request's overrides; raise ConfigError if out of range."""
        overrides = {
            name: value
            for name in ("keep_ratio", "scorer", "allocator", "alpha")
            if (value := getattr(self, name)) is not None
        }
        return replace(config, **overrides)

    @classmethod
    def from_custom_params(cls, custom_params: Any) -> Self | None:
        """Parse `custom_params["adakv"]`; None without one; raise ConfigError if it is not usable."""
        if not isinstance(custom_params, Mapping) or "adakv" not in custom_params:
            return None
        options = custom_params["adakv"]
        source = 'custom_params["adakv"]'
        if not isinstance(options, Mapping):
            raise ConfigError(f"{source}: expected an object, got {type(options).__name__}")
        _check_keys(options, [field.name for field in fields(cls)], source)
        try:
            return cls(**options)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None


def _check_keys(given: Mapping[str, Any], allowed: list[str], source: str) -> None:
    if unknown := sorted(str(key) for key in given if key not in allowed):
        raise ConfigError(f"{source}: unknown {', '.join(unknown)}; allowed: {', '.join(allowed)}")


def _check_number(name: str, value: object, low: float, high: float, *, exclude_low: bool = False) -> None:
    allowed = f"a number in {'(' if exclude_low else '['}{low:g}, {high:g}]"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name}: expected {allowed}, got {value!r}")
    if not low <= value <= high or (exclude_low and value == low):
        raise ConfigError(f"{name}: expected {allowed}, got {value!r}")


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name}: expected a whole number in [{low}, {high}], got {value!r}")


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{name}: expected true or false, got {value!r}")
