"""From words to the token ids of a chat whose user turn begins with the context."""

import hashlib
from dataclasses import dataclass
from typing import Any, Final

from ruler.rows import Row, Text

MARK: Final = "<the user's words>"


@dataclass(frozen=True)
class Prompt:
    """Token ids. context: the start of the user's turn; question: its rest and the start of the answer."""

    context: list[int]
    question: list[int]

    def __len__(self) -> int:
        return len(self.context) + len(self.question)

    def digest(self) -> str:
        """Names the ids and where the context ends."""
        return hashlib.sha256(repr((self.context, self.question)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Encoder:
    """kvpress' split of a chat: head and context, question and tail and answer prefix, tokenised apart."""

    tokenizer: Any
    head: str
    tail: str

    @classmethod
    def of(cls, tokenizer: Any) -> "Encoder":
        """With the tokenizer's chat template; without one, a line break ends the question."""
        if tokenizer.chat_template is None:
            return cls(tokenizer, tokenizer.bos_token or "", "\n")
        turns = [{"role": "user", "content": MARK}]
        options = {"add_generation_prompt": True, "tokenize": False, "enable_thinking": False}
        head, tail = tokenizer.apply_chat_template(turns, **options).split(MARK)
        return cls(tokenizer, head, tail)

    def prompt(self, text: Text | Row) -> Prompt:
        """What a server is sent."""
        return Prompt(
            self.ids(self.head + text.context),
            self.ids(text.question + self.tail + text.answer_prefix),
        )

    def ids(self, text: str) -> list[int]:
        """Tokens of the words alone."""
        found: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return found
