"""Text to hide things in, and hiding them."""

import re
from collections.abc import Sequence

from ruler.sources import Sources

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"')])\s+")


def essay_sentences(sources: Sources, num_words: int) -> list[str]:
    """The first words of the essays, from the start again where they end, cut into sentences."""
    words = sources.essay
    repeated = words * -(-num_words // len(words))
    return _SENTENCE_END.split(" ".join(repeated[:num_words]))


def hide(pieces: Sequence[str], hidden: Sequence[str], depths: Sequence[float]) -> list[str]:
    """`hidden` among the pieces, in this order; depths: ascending, 0 is before the first piece, 1 after the last."""
    found = list(pieces)
    for text, depth in reversed(list(zip(hidden, depths, strict=True))):
        found.insert(int(depth * len(pieces)), text)
    return found
