"""Variable tracking: one chain of four assignments in noise, after a solved example of some 500 tokens.

Sentences: github.com/NVIDIA/RULER, scripts/data/synthetic/variable_tracking.py and constants.py (Apache-2.0).
"""

import string
from dataclasses import dataclass
from random import Random
from typing import Final

from ruler.fitting import largest_fit
from ruler.metrics import string_match_all
from ruler.rows import Grow, Setting, Task, Text
from ruler.tasks.haystack import NOISE

HOPS: Final = 4
EXAMPLE_TOKENS: Final = 500
SMALLEST: Final = HOPS + 1  # lines of noise: the statements of a chain never follow each other at once
CONTEXT: Final = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{haystack}\n"
)
QUESTION: Final = "Question: Find all variables that are assigned the value {value} in the text above. "
ANSWER: Final = (
    "Answer: According to the chain(s) of variable assignment in the text above, "
    "{count} variables are assigned the value {value}, they are: "
)


@dataclass(frozen=True)
class Chain:
    """Variables that all get one value; depths: where each is assigned, ascending in [0, 1)."""

    value: str
    variables: tuple[str, ...]
    depths: tuple[float, ...]

    @classmethod
    def draw(cls, source: Random, num_letters: int) -> "Chain":
        """Different names of so many capitals."""
        names: dict[str, None] = {}
        while len(names) <= HOPS:
            names["".join(source.choices(string.ascii_uppercase, k=num_letters))] = None
        depths = sorted(source.random() for _ in names)
        return cls(str(source.randrange(10000, 99999)), tuple(names), tuple(depths))

    def text(self, num_noises: int) -> Text:
        """The chain among that many lines of noise."""
        known = [self.value, *(f"VAR {name} " for name in self.variables)]
        lines = [NOISE] * num_noises
        for turn, (name, depth) in enumerate(zip(self.variables, self.depths, strict=True)):
            place = int(depth * (num_noises - HOPS)) + turn  # different for every turn
            lines.insert(place + turn, f"VAR {name} = {known[turn]}")
        names = {"value": self.value, "count": len(self.variables)}
        context = CONTEXT.format(haystack="\n".join(lines))
        return Text(context, QUESTION.format(**names), ANSWER.format(**names), self.variables)


def begin(setting: Setting, source: Random, _index: int) -> Grow:
    """Draw the example and the chain."""
    example = _example(setting, Chain.draw(source, 3))
    chain = Chain.draw(source, 5)

    def grow(size: int) -> Text:
        text = chain.text(size)
        return Text(f"{example}\n{text.context}", text.question, text.answer_prefix, text.answers)

    return grow


def _example(setting: Setting, chain: Chain) -> str:
    def solved(size: int) -> str:
        text = chain.text(size)
        return f"{text.context}{text.question}{text.answer_prefix} {' '.join(text.answers)}\n"

    return solved(largest_fit(lambda size: setting.count_tokens(solved(size)), SMALLEST, EXAMPLE_TOKENS))


TASKS: Final = (Task("vt", 30, SMALLEST, string_match_all, begin),)
