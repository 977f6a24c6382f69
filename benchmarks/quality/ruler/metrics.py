"""RULER's two metrics for one answer, in percent."""

import re
from collections.abc import Callable, Sequence

Metric = Callable[[str, Sequence[str]], float]

_CONTROL = re.compile(r"[\x00-\x1f]")


def string_match_all(prediction: str, answers: Sequence[str]) -> float:
    """Share of the answers that the prediction contains, whatever their case."""
    return 100 * sum(_found(prediction, answers)) / len(answers)


def string_match_part(prediction: str, answers: Sequence[str]) -> float:
    """100 if the prediction contains any of the answers, whatever their case."""
    return 100.0 * any(_found(prediction, answers))


def _found(prediction: str, answers: Sequence[str]) -> list[bool]:
    text = _CONTROL.sub("", prediction).lower()  # without line breaks, as kvpress scores RULER
    return [answer.lower() in text for answer in answers]
