"""Questions on a folder of documents: each is prepared once, every question reuses the one that answers it.

Run: python examples/rag.py [--url URL] [--documents FOLDER] [QUESTION ...]
Needs `pip install openai`, and a server that was started with --enable-adakv.
"""

import argparse
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import httpx  # comes with openai
from openai import OpenAI

DOCUMENTS = Path(__file__).parent / "documents"
QUESTIONS = (
    "Which unalienable rights did the Creator endow men with?",
    "May a soldier be quartered in my house in time of peace?",
    "What did our fathers bring forth on this continent four score and seven years ago?",
    "Who is the King of Great Britain in this history of injuries and usurpations?",
)
SETTINGS = {"keep_ratio": 0.5}  # half of the tokens; all else as the server has it


def main() -> None:
    """Prepare every document, answer every question, show what the server holds."""
    options = parse()
    headers = {"Authorization": f"Bearer {options.api_key}"}
    adakv = httpx.Client(base_url=f"{options.url}/adakv", headers=headers, timeout=600)
    client = OpenAI(base_url=f"{options.url}/v1", api_key=options.api_key)
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(options.documents.glob("*.txt"))}
    if not texts:
        raise SystemExit(f"expected .txt files in {options.documents}, got none")

    print("Prepare each document once")
    for name, text in texts.items():
        made = call(adakv, "POST", "/contexts", {"messages": [instruction(text)], **SETTINGS})
        print(f"  {name}: {made['tokens']} tokens in {made['slots']} slots, context {made['id']}")

    print("\nAsk")
    for question in options.questions:
        name = retrieve(question, texts)
        print(f"  {question}\n    {name}: {answer(client, texts[name], question)}")

    print("\nContexts on the server, newest first")
    for context in call(adakv, "GET", "/contexts?state=ready")["contexts"]:
        saved = f"{context['saved_slots']} slots and {context['saved_bytes'] / 1e6:.1f} MB saved"
        print(f"  {context['id']}: {saved}, {context['hits']} requests served")


def instruction(text: str) -> dict[str, str]:
    """The message that every question on this document starts with, the same to the last character."""
    return {"role": "system", "content": f"Answer in one short sentence, from this document alone.\n\n{text}"}


def retrieve(question: str, texts: dict[str, str]) -> str:
    """The document that shares most words with the question; rare words count more. Use your own index here."""
    words = {name: set(re.findall(r"\w+", text.lower())) for name, text in texts.items()}
    spread = Counter(word for each in words.values() for word in each)
    asked = set(re.findall(r"\w+", question.lower()))
    return max(words, key=lambda name: sum(1 / spread[word] ** 2 for word in asked & words[name]))


def answer(client: OpenAI, text: str, question: str) -> str:
    """An ordinary chat request. That it starts as a context does is enough; nothing in it names one."""
    found = client.chat.completions.create(
        model="default",
        messages=[instruction(text), {"role": "user", "content": question}],
        max_tokens=32,
        temperature=0,
        extra_body={"return_meta_info": True},  # only to see what was reused
    )
    (choice,) = found.choices
    used = choice.meta_info
    context = used.get("adakv", {}).get("context_id")  # None: served exactly, as on any server
    reused = f"{used['cached_tokens']} of {used['prompt_tokens']} prompt tokens cached, context {context}"
    return f"{' '.join(choice.message.content.split())}\n    [{reused}]"


def call(adakv: httpx.Client, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """One call of the /adakv routes; ends with the server's own words if it refuses."""
    response = adakv.request(method, path, json=body)
    if response.is_error:
        raise SystemExit(f"{method} {path}: {response.status_code} {response.text}")
    return response.json()


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", default="http://localhost:30000", type=lambda url: url.rstrip("/"))
    parser.add_argument("--api-key", default=os.environ.get("ADAKV_API_KEY", "none"))
    parser.add_argument("--documents", type=Path, default=DOCUMENTS, help="folder of text files")
    parser.add_argument("questions", nargs="*", default=QUESTIONS, metavar="QUESTION")
    return parser.parse_args()


if __name__ == "__main__":
    main()
