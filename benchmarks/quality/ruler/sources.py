"""What the rows are made of: essays, words, and questions on documents. Read when a task first needs it."""

import importlib.util
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

TEXTS = Path(__file__).resolve().parents[3] / "examples" / "texts"


class MissingSource(RuntimeError):
    """Something that a task is made of is not there; the message says what to do."""


@dataclass(frozen=True)
class Words:
    """RULER's word lists. more: any English words, for lists longer than these."""

    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]
    verbs: tuple[str, ...]
    more: tuple[str, ...] = ()

    @cached_property
    def all(self) -> tuple[str, ...]:
        """Every noun, adjective and verb once, sorted."""
        return tuple(sorted({*self.nouns, *self.adjectives, *self.verbs}))


@dataclass(frozen=True)
class Question:
    """documents: which are needed for the answer, or came with the question; related: on the same subject."""

    text: str
    answers: tuple[str, ...]
    documents: tuple[int, ...]
    related: tuple[int, ...] = ()


@dataclass(frozen=True)
class Library:
    """Questions, and the documents that they refer to by number."""

    documents: tuple[str, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Sources:
    """Files are found by what their names contain, so that RULER's own downloads serve as they are.

    folder: JSON files with essay, squad, hotpot and, for very long word lists, english_words in their names.
    """

    folder: Path | None

    @cached_property
    def essay(self) -> list[str]:
        """The words of the essays; without a folder, those of the texts in examples/."""
        if self.folder is None:
            return " ".join(path.read_text(encoding="utf-8") for path in sorted(TEXTS.glob("*.txt"))).split()
        text: str = self._read("essay")["text"]
        return text.split()

    @cached_property
    def words(self) -> Words:
        """From the package wonderwords, as in RULER."""
        spec = importlib.util.find_spec("wonderwords")
        if spec is None or spec.origin is None:
            raise MissingSource("expected the package wonderwords; pip install wonderwords")
        assets = Path(spec.origin).parent / "assets"
        nouns, adjectives, verbs = (
            tuple(line.rstrip() for line in (assets / f"{kind}list.txt").open(encoding="utf-8"))
            for kind in ("noun", "adjective", "verb")
        )
        more = self._read("english_words").values() if self._matches("english_words") else ()
        return Words(nouns, adjectives, verbs, tuple(more))

    @cached_property
    def squad(self) -> Library:
        """SQuAD 2.0's paragraphs and answerable questions."""
        articles = [article["paragraphs"] for article in self._read("squad")["data"]]
        numbers = _numbered(each["context"] for paragraphs in articles for each in paragraphs)
        questions = []
        for paragraphs in articles:
            subject = [numbers[each["context"]] for each in paragraphs]
            for own, paragraph in zip(subject, paragraphs, strict=True):
                related = tuple(number for number in subject if number != own)
                questions += [
                    Question(asked["question"], _texts(asked["answers"]), (own,), related)
                    for asked in paragraph["qas"]
                    if not asked["is_impossible"]
                ]
        return Library(tuple(numbers), tuple(questions))

    @cached_property
    def hotpot(self) -> Library:
        """HotpotQA's questions, each with the ten paragraphs that it comes with."""
        rows = self._read("hotpot")
        given = [_paragraphs(row["context"]) for row in rows]
        numbers = _numbered(paragraph for paragraphs in given for paragraph in paragraphs)
        questions = (
            Question(row["question"], (row["answer"],), tuple(numbers[each] for each in paragraphs))
            for row, paragraphs in zip(rows, given, strict=True)
        )
        return Library(tuple(numbers), tuple(questions))

    def _matches(self, name: str) -> list[Path]:
        return (
            [] if self.folder is None else [p for p in self.folder.glob("*.json") if name in p.name.lower()]
        )

    def _read(self, name: str) -> Any:
        found = self._matches(name)
        if len(found) != 1:
            wanted = f"one JSON file in the data folder ({self.folder}) with {name!r} in its name"
            raise MissingSource(
                f"expected {wanted}, got {len(found)}; leave out the task or give --data FOLDER"
            )
        return json.loads(found[0].read_text(encoding="utf-8"))


def _numbered(documents: Any) -> dict[str, int]:
    return {document: number for number, document in enumerate(sorted(set(documents)))}


def _texts(answers: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(answer["text"] for answer in answers))


def _paragraphs(context: Any) -> list[str]:
    """From pairs, as published, or from two columns, as on the Hugging Face hub."""
    pairs = zip(context["title"], context["sentences"], strict=True) if isinstance(context, dict) else context
    return [f"{title}\n{''.join(sentences)}" for title, sentences in pairs]
