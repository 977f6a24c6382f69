"""All rows of a run, each fitted to the length; the same for the same tokenizer, data, length and seed."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ruler.fitting import TooShort, largest_fit
from ruler.prompts import Encoder, Prompt
from ruler.rows import Row, Setting, Task
from ruler.sources import Sources
from ruler.tasks import TASKS


@dataclass(frozen=True)
class Sample:
    """A row and its token ids."""

    row: Row
    prompt: Prompt


@dataclass(frozen=True)
class Rows:
    """Which rows a run consists of."""

    tasks: tuple[str, ...]
    count: int
    length: int
    seed: int
    data: Path | None

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """What `of` reads."""
        parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
        parser.add_argument("--rows", type=int, default=20, help="per task")
        parser.add_argument("--length", type=int, default=4096, help="tokens of a prompt and its answer")
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument(
            "--data", type=Path, help="folder with essays, SQuAD and HotpotQA; see the README"
        )

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Rows":
        """From the command line."""
        return cls(tuple(options.tasks), options.rows, options.length, options.seed, options.data)

    def samples(self, tokenizer: Any) -> Iterator[Sample]:
        """The first row of every task, then the second: a run that is cut short has seen all tasks."""
        encoder = Encoder.of(tokenizer)
        setting = Setting(Sources(self.data), self.length, self.seed, lambda text: len(encoder.ids(text)))
        for index in range(self.count):
            for name in self.tasks:
                yield make_sample(TASKS[name], setting, encoder, index)


def make_sample(task: Task, setting: Setting, encoder: Encoder, index: int) -> Sample:
    """One row with as much haystack as fits beside the chat template, the question and the answer."""
    grow = task.begin(setting, Random(f"{setting.seed}:{task.name}:{index}"), index)
    limit = setting.length - task.max_new_tokens
    try:
        size = largest_fit(lambda size: len(encoder.prompt(grow(size))), task.smallest, limit)
    except TooShort as error:
        raise TooShort(f"{task.name}, row {index}: {error} beside {task.max_new_tokens} new ones") from None
    text = grow(size)
    row = Row(
        task.name,
        index,
        text.context,
        text.question,
        text.answer_prefix,
        text.answers,
        task.max_new_tokens,
    )
    return Sample(row, encoder.prompt(row))


def shard(samples: Sequence[Sample], text: str) -> list[Sample]:
    """`text` is "i/n": every n-th sample from the i-th on, counted from 0."""
    number, count = (int(part) for part in text.split("/"))
    if not 0 <= number < count:
        raise ValueError(f"shard: expected i/n with 0 <= i < n, got {text}")
    return list(samples[number::count])
