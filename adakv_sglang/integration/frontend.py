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

    Sets `context_tokens` to the length of the first `context_messages` messages (all by default).
    """
    wish = _wish(request)
    if wish is None or not wish.compress or wish.context_tokens is not None:
        return
    adapted, _ = result
    count = wish.context_messages or len(request.messages)
    if count > len(request.messages):
        raise ConfigError(
            f'custom_params["adakv"]: context_messages: expected 1 to {len(request.messages)}, got {count}'
        )
    options = {**request.custom_params["adakv"], "context_tokens": _boundary(serving, request, count)}
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


def _wish(request: Any) -> ContextRequest | None:
    return ContextRequest.from_custom_params(request.custom_params) if is_selected() else None


def _boundary(serving: Any, request: Any, count: int) -> int:
    """Tokens of the first `count` messages that any continuation of them shares.

    The longest common prefix of this prompt and of two others that go on differently: by a user's
    message, and by the assistant's answer. A template that refuses one of them is not asked twice.
    """
    head = list(request.messages[:count])
    prompts = [_prompt_ids(serving, request, list(request.messages)), _prompt_ids(serving, request, head)]
    try:
        user = type(request).model_validate({"model": "-", "messages": [{"role": "user", "content": "-"}]})
        prompts.append(_prompt_ids(serving, request, [*head, *user.messages]))
    except ValueError:
        pass  # templates may demand alternating roles: then no user's message can follow
    return len(os.path.commonprefix(prompts))


def _prompt_ids(serving: Any, request: Any, messages: list[Any]) -> list[int]:
    other = request.model_copy(update={"messages": messages})
    processed = serving._process_messages(other, serving.tokenizer_manager.model_config.is_multimodal)
    if isinstance(processed.prompt_ids, list) and processed.prompt_ids:
        return processed.prompt_ids
    ids: list[int] = serving.tokenizer_manager.tokenizer.encode(processed.prompt)
    return ids
