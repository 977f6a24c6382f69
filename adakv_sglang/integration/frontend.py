"""The main process: what a request says about contexts on its way in, and what its answer says."""

import os.path
from collections.abc import Callable
from typing import Any, Final

from adakv_sglang.config import ConfigError, ContextRequest
from adakv_sglang.integration.options import NAME, is_selected

REFUSED: Final = (
    "this chat template renders no part of the conversation alone; give context_tokens, and protect, instead"
)


def verify_options(params: Any, *_args: Any, **_kwargs: Any) -> None:
    """BEFORE `SamplingParams.verify`: raise ConfigError, a ValueError, which SGLang answers with 400."""
    if params.custom_params and is_selected():
        ContextRequest.from_custom_params(params.custom_params)


def mark_boundary(result: tuple[Any, Any], serving: Any, request: Any, *_args: Any, **_kwargs: Any) -> None:
    """AFTER `OpenAIServingChat._convert_to_internal_request`: what is said in messages is meant in tokens.

    Turns `context_messages` (all messages by default) into `context_tokens`, and `protect_messages` into spans of
    `protect`.
    """
    wish = ContextRequest.from_custom_params(request.custom_params) if is_selected() else None
    if wish is None or not wish.compress:
        return
    if wish.context_tokens is not None and wish.protect_messages is None:
        return
    adapted, _ = result
    options = dict(request.custom_params["adakv"])
    for name in ("context_messages", "protect_messages"):
        options.pop(name, None)
    count = wish.context_messages or len(request.messages)
    if count > len(request.messages):
        raise _error(f"context_messages: expected 1 to {len(request.messages)}, got {count}")
    prompt = _Prompt(serving, request)
    if wish.context_tokens is None:
        options["context_tokens"] = prompt.boundary(count)
    if wish.protect_messages:
        spans = [prompt.span(i, count, options["context_tokens"]) for i in wish.protect_messages]
        options["protect"] = [*(wish.protect or ()), *spans]
    adapted.sampling_params["custom_params"] = {**request.custom_params, "adakv": options}


def update_meta_info(
    original: Callable[..., None],
    manager: Any,
    meta_info: dict[str, Any],
    state: Any,
    customized_info: dict[str, list[Any]],
    index: int,
    finish_reason: Any,
) -> None:
    """AROUND `TokenizerManager.update_request_meta_info`: our report is one object, not a list of pieces."""
    others = {key: values for key, values in customized_info.items() if key != NAME}
    original(manager, meta_info, state, others, index, finish_reason)
    if NAME in customized_info and (reports := customized_info[NAME][index]):
        meta_info[NAME] = reports[0]


class _Prompt:
    """A conversation in tokens, and where its messages lie in them."""

    def __init__(self, serving: Any, request: Any) -> None:
        self._serving, self._request = serving, request
        self._tokens = _prompt_ids(serving, request, list(request.messages))
        self._shared: dict[int, list[int]] = {}

    def boundary(self, count: int) -> int:
        """Tokens of the first `count` messages that all their continuations share; never the whole prompt."""
        shared = min(self._shared_with(count))
        if count < len(self._request.messages) and shared == 0:
            raise _error(REFUSED)
        return min(shared, len(self._tokens) - 1)

    def span(self, index: int, count: int, end: int) -> list[int]:
        """Tokens of message `index`, one of the first `count`, with what the template puts behind it.

        From where the prompt differs at the latest with another message in its place, to where it does with another
        one behind it: a template may render the messages before otherwise for one of the continuations. At most
        up to `end`, where the context ends.
        """
        if index >= count:
            raise _error(f"protect_messages: expected numbers from 0 to {count - 1}, got {index}")
        first = max(self._shared_with(index)) if index else 0
        last = min(max(self._shared_with(index + 1)), end)
        if first >= last:
            raise _error(f"protect_messages: message {index} has no tokens in the context; leave it out")
        return [first, last]

    def _shared_with(self, count: int) -> list[int]:
        """Lengths of the common prefixes of this prompt and others that begin with the same `count` messages.

        They go on differently: with the assistant's answer, and with a user's message that begins otherwise.
        Templates refuse what they do not allow (roles that do not alternate, a conversation without a user); such a
        continuation cannot come.
        """
        if count not in self._shared:
            head, behind = self._request.messages[:count], self._request.messages[count : count + 1]
            others = []
            for messages in ([*head], [*head, self._other_message(behind)]):
                try:
                    others.append(_prompt_ids(self._serving, self._request, messages))
                except ValueError:
                    continue
            self._shared[count] = [len(os.path.commonprefix([self._tokens, other])) for other in others]
        if not self._shared[count]:
            raise _error(REFUSED)
        return self._shared[count]

    def _other_message(self, actual: list[Any]) -> Any:
        """A user's message that does not begin as the actual one does, if there is one."""
        begins = str(actual[0].content).lstrip()[:1] if actual else ""
        message = {"role": "user", "content": "+" if begins == "-" else "-"}
        return type(self._request).model_validate({"model": "-", "messages": [message]}).messages[0]


def _error(problem: str) -> ConfigError:
    return ConfigError(f'custom_params["adakv"]: {problem}')


def _prompt_ids(serving: Any, request: Any, messages: list[Any]) -> list[int]:
    """Token ids of a conversation; raises ValueError where the template refuses it."""
    other = request.model_copy(update={"messages": messages, "input_ids": None})
    processed = serving._process_messages(other, serving.tokenizer_manager.model_config.is_multimodal)
    if isinstance(processed.prompt_ids, list) and processed.prompt_ids:
        return processed.prompt_ids
    ids: list[int] = serving.tokenizer_manager.tokenizer.encode(processed.prompt)
    return ids
