"""How many requests have shared a prefix: finds those worth a context before anybody asks for one."""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

CAPACITY: Final = 4096  # prefixes that are remembered
SPACING: Final = 64  # tokens between two lengths that a prefix may have


class SharingTable:
    """Requests per prefix; the prefixes seen longest ago are forgotten.

    Prefixes go by their digests. No clock is looked at: ranks that see the same requests in the same order come to
    the same prefixes.
    """

    def __init__(self, hits: int, capacity: int = CAPACITY) -> None:
        self._hits, self._capacity = hits, capacity
        self._counts: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def see(self, prefixes: Sequence[bytes], known: Sequence[int]) -> int | None:
        """Count one more request for each of its prefixes; returns the place of the last that enough have shared.

        prefixes: each begins the next. known: requests that the cache has counted for each, this one among them;
        there the count of a new prefix starts. Every prefix that enough have shared must be shared anew from now
        on, to be named again: what is done for the last one serves the requests that the others were counted for.
        """
        for prefix, already in zip(prefixes, known, strict=True):
            self._counts[prefix] = self._counts.get(prefix, already - 1) + 1
            self._counts.move_to_end(prefix)
        due = [place for place, prefix in enumerate(prefixes) if self._counts[prefix] >= self._hits]
        for place in due:
            self._counts[prefixes[place]] = 0
        while len(self._counts) > self._capacity:
            self._counts.popitem(last=False)
        return due[-1] if due else None

    def clear(self) -> None:
        """Forget everything."""
        self._counts.clear()


def shared_lengths(nodes: Sequence[tuple[int, int]], shortest: int, longest: int) -> dict[int, int]:
    """Lengths at which a shared prefix may end, ascending, and how many requests have shared each.

    nodes: tokens, and requests that have come by, of each node on a request's path from the root on. Lengths lie
    in `[shortest, longest]`; above `shortest` they are multiples of SPACING. So prefixes that differ by the first
    words of a question, which happened to agree, are one.
    """
    lengths: dict[int, int] = {}
    end = 0
    for num_tokens, requests in nodes:
        end += num_tokens
        length = max(min(end, longest) // SPACING * SPACING, shortest)
        if requests > 1 and length <= min(end, longest):
            lengths[length] = max(requests, lengths.get(length, 0))
    return lengths


def digests(
    extra_key: str | None, cache_salt: str | None, tokens: "array[int]", lengths: Sequence[int]
) -> list[bytes]:
    """Names, 16 bytes each, of the prefixes of `tokens` (type code q) with these ascending lengths.

    Every token is read once. The same tokens in another cache namespace have another name.
    """
    running = hashlib.sha256(repr((extra_key, cache_salt)).encode())
    view, start, found = memoryview(tokens), 0, []
    for length in lengths:
        running.update(view[start:length])
        found.append(running.copy().digest()[:16])
        start = length
    return found
