"""Launching a Triton kernel again without working out once more what its first launch has settled."""

from collections.abc import Hashable, Mapping
from typing import Any


class Relaunch:
    """One kernel with fixed constants; its last parameters, in this order, are the constants.

    Binding arguments, looking at their types and finding the compiled kernel costs the host several times
    what the launch itself does, in every layer of every eager batch.
    """

    def __init__(self, kernel: Any, options: Mapping[str, Any]) -> None:
        self._kernel, self._options = kernel, dict(options)
        self._constants = tuple(options[name] for name in kernel.arg_names if name in options)
        self._compiled: dict[Hashable, Any] = {}

    def __call__(self, grid: tuple[int, int, int], key: Hashable, *arguments: Any) -> None:
        """Launch. Launches of the same `key` must agree in whatever Triton compiles for.

        That is: types, the alignment of pointers to 16 bytes, and integers up to divisibility by 16 and being 1.
        """
        compiled = self._compiled.get(key)
        if compiled is not None:
            compiled[grid](*arguments, *self._constants)
            return
        compiled = self._kernel[grid](*arguments, **self._options)
        if compiled is not None:  # Triton's interpreter compiles nothing
            self._compiled[key] = compiled
