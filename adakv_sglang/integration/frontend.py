"""The main process: what a request says about contexts on its way in, and what its answer says."""

import os.path
from collections.abc import Callable
from typing import Any

from adakv_sglang.config import ConfigError, ContextRequest
from adakv_sglang.integration.options import NAME, is_selected


def verify_options(params: Any, *_args: Any, **_kwargs: Any) -> None:
    """BEFORE `SamplingParams.verify`: raise ConfigError, a ValueError, which SGLang answers with 400."""
    if params.custom_params and is_selected():
        ContextRequest.from_custom_params(params.custom_params)


def mark_boundary(result: tuple[Any, Any], serving: Any, request: Any, *_args: Any, **_kwargs: Any) -> None:
    """AFTER `OpenAIServingChat._convert_to_internal_request`: a context ends where a message ends.

    Turns `context_messages` (all messages by default) into `context_tokens`.
    """
    wish = ContextRequest.from_custom_params(request.custom_params) if is_selected() else None
    if wish is None or not wish.compress or wish.context_tokens is not None:
        return
    adapted, _ = result
    count = wish.context_messages or len(request.messages)
    if count > len(request.messages):
        raise ConfigError(
            f'custom_params["adakv"]: context_messages: expected 1 to {len(request.messages)}, got {count}'
        )
    options = {**request.custom_params["adakv"], "context_tokens": _boundary(serving, request, count)}
    options.pop("context_messages", None)
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


def _boundary(serving: Any, request: Any, count: int) -> int:
    """Tokens of the first `count` messages that their continuations share.

    The longest common prefix of this prompt and of others that begin with the same messages and go on
    differently: with a user's message, and with the assistant's answer. Templates refuse what they do not
    allow (roles that do not alternate, a conversation without a user); such a continuation cannot come.
    """
    head = list(request.messages[:count])
    user = type(request).model_validate({"model": "-", "messages": [{"role": "user", "content": "-"}]})
    prompt = _prompt_ids(serving, request, list(request.messages))
    others = []
    for messages in (head, [*head, *user.messages]):
        try:
            others.append(_prompt_ids(serving, request, messages))
        except ValueError:
            continue
    shared = min(len(os.path.commonprefix([prompt, other])) for other in others) if others else 0
    if not others or (count < len(request.messages) and shared == 0):
        raise ConfigError(
            'custom_params["adakv"]: this chat template renders no part of the conversation alone; '
            "give context_tokens instead"
        )
    return min(shared, len(prompt) - 1)


def _prompt_ids(serving: Any, request: Any, messages: list[Any]) -> list[int]:
    """Token ids of a conversation; raises ValueError where the template refuses it."""
    other = request.model_copy(update={"messages": messages, "input_ids": None})
    processed = serving._process_messages(other, serving.tokenizer_manager.model_config.is_multimodal)
    if isinstance(processed.prompt_ids, list) and processed.prompt_ids:
        return processed.prompt_ids
    ids: list[int] = serving.tokenizer_manager.tokenizer.encode(processed.prompt)
    return ids
