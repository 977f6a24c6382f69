"""Questions on documents: what is needed for the answer, among paragraphs that are not.

Sentences: github.com/NVIDIA/RULER, scripts/data/synthetic/qa.py and constants.py (Apache-2.0).
"""

from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from random import Random
from typing import Final

from ruler.metrics import string_match_part
from ruler.rows import Grow, Setting, Task, Text
from ruler.sources import Library, MissingSource, Question, Sources

INSTRUCTION: Final = (
    "Answer the question based on the given documents. "
    "Only give me the answer and do not output any other words.\n\n"
)
CONTEXT: Final = INSTRUCTION + "The following are given documents.\n\n{haystack}\n\n"
QUESTION: Final = INSTRUCTION + "Question: {query} "
ANSWER: Final = "Answer:"


def begin(library_of: Callable[[Sources], Library], setting: Setting, source: Random, index: int) -> Grow:
    """The index-th question of an order that the seed alone decides, and an order of the other documents."""
    library = library_of(setting.sources)
    if index >= (count := len(library.questions)):
        raise MissingSource(f"expected at least {index + 1} questions, got {count}; ask for fewer rows")
    order = Random(f"{setting.seed}:questions").sample(range(count), count)
    question, seed = library.questions[order[index]], source.random()
    others = _others(library, question, source)

    def grow(size: int) -> Text:
        """size: documents beside those that came with the question."""
        chosen = [*question.documents, *islice(cycle(others or question.documents), size)]
        Random(seed).shuffle(chosen)
        documents = (
            f"Document {place}:\n{library.documents[number]}" for place, number in enumerate(chosen, 1)
        )
        context = CONTEXT.format(haystack="\n\n".join(documents))
        return Text(context, QUESTION.format(query=question.text), ANSWER, question.answers)

    return grow


def _others(library: Library, question: Question, source: Random) -> list[int]:
    """Those on the same subject first."""
    used = {*question.documents, *question.related}
    rest = [number for number in range(len(library.documents)) if number not in used]
    return [*source.sample(question.related, len(question.related)), *source.sample(rest, len(rest))]


TASKS: Final = (
    Task("qa_1", 32, 0, string_match_part, partial(begin, lambda sources: sources.squad)),
    Task("qa_2", 32, 0, string_match_part, partial(begin, lambda sources: sources.hotpot)),
)
