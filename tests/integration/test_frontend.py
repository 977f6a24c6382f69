"""Chat: what a request says in messages, in tokens. One token per character, templates as models have them."""

from types import SimpleNamespace

import pytest
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest

from adakv_sglang import ConfigError
from adakv_sglang.integration.frontend import mark_boundary

TALK = (("system", "be brief"), ("user", "the text"), ("assistant", "read"), ("user", "who?"))


def chatml(messages):
    return "".join(f"<{role}>{text}</>" for role, text in messages) + "<assistant>"


def thinking(messages):
    """Answers before the last question lose their thoughts, later ones have some."""
    last = max((i for i, (role, _) in enumerate(messages) if role == "user"), default=-1)
    shown = [
        (role, f"(hm){text}" if role == "assistant" and i > last else text)
        for i, (role, text) in enumerate(messages)
    ]
    return chatml(shown)


def strict(messages):
    """Roles alternate, and somebody must have asked something."""
    roles = [role for role, _ in messages if role != "system"]
    if not roles or any(role != ("user", "assistant")[i % 2] for i, role in enumerate(roles)):
        raise ValueError("roles must alternate")
    return chatml(messages)


class Serving:
    """In place of SGLang's: renders with a template."""

    def __init__(self, template):
        self._template = template
        self.tokenizer_manager = SimpleNamespace(model_config=SimpleNamespace(is_multimodal=False))

    def _process_messages(self, request, is_multimodal):
        text = self._template([(message.role, message.content) for message in request.messages])
        return SimpleNamespace(prompt_ids=[ord(letter) for letter in text])


def marked(wish, template=chatml, talk=TALK):
    """The options that leave for the scheduler, and the prompt."""
    messages = [{"role": role, "content": text} for role, text in talk]
    custom = {"adakv": {"compress": True, **wish}, "other": 1}
    request = ChatCompletionRequest(model="m", messages=messages, custom_params=custom)
    adapted = SimpleNamespace(sampling_params={})
    mark_boundary((adapted, request), Serving(template), request)
    if not adapted.sampling_params:
        return None, template(talk)
    sent = adapted.sampling_params["custom_params"]
    assert sent["other"] == 1 and request.custom_params is not sent
    return sent["adakv"], template(talk)


def refusal(*args, **kwargs):
    with pytest.raises(ConfigError) as error:
        marked(*args, **kwargs)
    return str(error.value)


@pytest.mark.parametrize("template", [chatml, thinking, strict])
@pytest.mark.parametrize("index", range(4))
def test_a_protected_message_is_protected_whole(template, index):
    sent, prompt = marked({"protect_messages": [index]}, template)
    ((start, end),) = sent["protect"]
    assert TALK[index][1] in prompt[start:end]
    assert 0 <= start < end <= sent["context_tokens"] < len(prompt)
    others = [text for i, (_, text) in enumerate(TALK) if i != index]
    assert not any(text in prompt[start:end] for text in others)
    assert "protect_messages" not in sent and "context_messages" not in sent


@pytest.mark.parametrize("begin", ["-", " - ", "+", ""])
def test_a_message_is_protected_from_its_first_letter_on(begin):
    talk = (*TALK[:3], ("user", f"{begin}who?"))
    sent, prompt = marked({"protect_messages": [3]}, talk=talk)
    ((start, end),) = sent["protect"]
    assert prompt[start:end] == f"{begin}who?</><"


def test_messages_are_added_to_the_spans_that_were_given():
    wish = {"protect": [[3, 5]], "protect_messages": [0, 2], "context_messages": 3, "keep_ratio": 0.3}
    sent, prompt = marked(wish)
    first, *spans = sent["protect"]
    assert first == [3, 5] and len(spans) == 2
    assert ["be brief" in prompt[a:b] for a, b in spans] == [True, False]
    assert ["read" in prompt[a:b] for a, b in spans] == [False, True]
    assert sent["compress"] and sent["keep_ratio"] == 0.3
    assert prompt[: sent["context_tokens"]].endswith("<assistant>read</><")


def test_without_messages_to_protect_nothing_is_said_about_spans():
    sent, prompt = marked({"context_messages": 2})
    assert sent == {"compress": True, "context_tokens": len(chatml(TALK[:2])) - len("assistant>")}
    assert marked({"context_tokens": 5})[0] is None
    assert marked({"context_tokens": 5, "protect_messages": [], "protect": [[1, 2]]})[0]["protect"] == [
        [1, 2]
    ]


def test_a_context_may_end_by_tokens_and_protect_messages():
    sent, prompt = marked({"context_tokens": 40, "protect_messages": [0, 1]})
    assert sent["context_tokens"] == 40
    assert max(end for _, end in sent["protect"]) == 40
    said = refusal({"context_tokens": 40, "protect_messages": [2]})
    assert said == (
        'custom_params["adakv"]: protect_messages: message 2 has no tokens in the context; leave it out'
    )


@pytest.mark.parametrize(("wish", "highest"), [({}, 3), ({"context_messages": 2}, 1)])
def test_messages_behind_the_context_cannot_be_protected(wish, highest):
    said = refusal({**wish, "protect_messages": [0, highest + 1]})
    assert said == (
        f'custom_params["adakv"]: protect_messages: expected numbers from 0 to {highest}, got {highest + 1}'
    )


def test_a_template_that_renders_no_part_is_named():
    def all_or_nothing(messages):
        if tuple(messages) != TALK:
            raise ValueError("no")
        return chatml(messages)

    for wish in ({"context_messages": 2}, {"context_tokens": 30, "protect_messages": [0]}):
        assert "renders no part of the conversation alone; give context_tokens" in refusal(
            wish, all_or_nothing
        )
