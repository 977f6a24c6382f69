"""What a task, its surroundings and its rows are."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from ruler.metrics import Metric
from ruler.sources import Sources


@dataclass(frozen=True)
class Text:
    """One example in words: what is compressed, what is asked later, and how the model's answer begins."""

    context: str
    question: str
    answer_prefix: str
    answers: tuple[str, ...]


Grow = Callable[[int], Text]  # the same example with a haystack of that size


@dataclass(frozen=True)
class Setting:
    """What all rows of a run have in common. length: tokens of a whole prompt and its answer."""

    sources: Sources
    length: int
    seed: int
    count_tokens: Callable[[str], int]


@dataclass(frozen=True)
class Task:
    """One of the 13. smallest: size of the haystack in the task's own unit that makes sense at all.

    begin: draws the example of one index, all but the amount of haystack around it.
    """

    name: str
    max_new_tokens: int
    smallest: int
    metric: Metric
    begin: Callable[[Setting, Random, int], Grow]


@dataclass(frozen=True)
class Row:
    """One example of a task, fitted to the length."""

    task: str
    index: int
    context: str
    question: str
    answer_prefix: str
    answers: tuple[str, ...]
    max_new_tokens: int
