"""One line of JSON per row, method and keep ratio; a file may be continued, also by several processes."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ruler.generate import Sample
from ruler.tasks import TASKS

Key = tuple[str, str, str, int, str, float]


@dataclass(frozen=True)
class Result:
    """One answer. prompt: the prompt's digest; score in percent; owned_slots: what the context owned meanwhile."""

    model: str
    task: str
    index: int
    seed: int
    length: int
    prompt: str
    method: str
    keep_ratio: float
    prediction: str
    answers: list[str]
    score: float
    context_tokens: int
    cached_tokens: int
    owned_slots: int
    seconds: float

    @property
    def key(self) -> Key:
        """What is not measured twice."""
        return (self.model, self.prompt, self.task, self.index, self.method, self.keep_ratio)


@dataclass(frozen=True)
class Run:
    """What all results of a run have in common."""

    model: str
    seed: int
    length: int

    def key(self, sample: Sample, method: str, keep_ratio: float) -> Key:
        """The key that the result will have."""
        row = sample.row
        return (self.model, sample.prompt.digest(), row.task, row.index, method, keep_ratio)

    def result(self, sample: Sample, method: str, keep_ratio: float, prediction: str, **used: Any) -> Result:
        """Scores the prediction; used: cached_tokens, owned_slots and seconds."""
        row = sample.row
        return Result(
            model=self.model,
            task=row.task,
            index=row.index,
            seed=self.seed,
            length=self.length,
            prompt=sample.prompt.digest(),
            method=method,
            keep_ratio=keep_ratio,
            prediction=prediction,
            answers=list(row.answers),
            score=TASKS[row.task].metric(prediction, row.answers),
            context_tokens=len(sample.prompt.context),
            **used,
        )


def append(path: Path, line: dict[str, Any]) -> None:
    """In one write: lines of several processes do not mix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        os.write(file.fileno(), (json.dumps(line) + "\n").encode())


def save(path: Path, result: Result) -> None:
    """Append one result."""
    append(path, asdict(result))


def load(paths: Iterable[Path]) -> list[Result]:
    """All results, each once; other lines, and one that was cut short, are left out."""
    found: dict[Key, Result] = {}
    names = [field.name for field in fields(Result)]
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                values = json.loads(line)
                result = Result(**{name: values[name] for name in names})
            except (json.JSONDecodeError, KeyError):
                continue
            found[result.key] = result
    return list(found.values())


def known(path: Path) -> set[Key]:
    """Keys of what the file holds already."""
    return {result.key for result in load([path])} if path.exists() else set()
