"""Every symbol of SGLang that is touched, in one table, and the check that all of them are as expected."""

import importlib
import inspect
import pkgutil
from dataclasses import dataclass
from typing import Any, Final, Literal

Role = Literal["main", "scheduler"]
_OWN: Final = "adakv_sglang.integration"
_SRT: Final = "sglang.srt"


@dataclass(frozen=True, slots=True)
class Seam:
    """One foreign symbol.

    symbol: dotted path below `sglang.srt`. params: parameters we rely on. why: one sentence.
    """

    symbol: str
    params: tuple[str, ...]
    why: str

    @property
    def path(self) -> str:
        """Full dotted path."""
        return f"{_SRT}.{self.symbol}"


@dataclass(frozen=True, slots=True)
class Hook(Seam):
    """A symbol that is wrapped through SGLang's HookRegistry.

    role: the process whose copy is wrapped. kind: name of the HookType. handler: `module:function` of ours.
    """

    role: Role
    kind: Literal["AFTER", "AROUND", "BEFORE"]
    handler: str

    def resolve(self) -> Any:
        """Import our function."""
        module, _, name = self.handler.partition(":")
        return getattr(importlib.import_module(f"{_OWN}.{module}"), name)


_ARGS: Final = "server_args.ServerArgs"
_TREE: Final = "mem_cache.unified_radix_cache.UnifiedRadixCache"
_FULL: Final = "mem_cache.unified_cache.components.full.FullComponent"
_CORE: Final = "mem_cache.unified_cache.unified_tree_core.UnifiedTreeCore"
_STREAMER: Final = "managers.scheduler_components.output_streamer.SchedulerOutputStreamer"
_CAPTURE: Final = "model_executor.runner_utils.capture_mode"
_NATIVE: Final = "layers.attention.torch_native_backend.TorchNativeAttnBackend"

HOOKS: Final[tuple[Hook, ...]] = (
    Hook(
        f"{_ARGS}.add_cli_args", ("parser",), "adds our options", "main", "AFTER", "command_line:add_cli_args"
    ),
    Hook(
        f"{_ARGS}.from_cli_args",
        ("args",),
        "turns our options into those that select us, and into settings",
        "main",
        "AROUND",
        "command_line:from_cli_args",
    ),
    Hook(
        f"{_ARGS}.check_server_args",
        ("self",),
        "refuses options that cannot be served",
        "main",
        "AFTER",
        "options:check_server_args",
    ),
    Hook(
        "sampling.sampling_params.SamplingParams.verify",
        ("self", "vocab_size"),
        "answers a bad custom_params['adakv'] with 400",
        "main",
        "BEFORE",
        "frontend:verify_options",
    ),
    Hook(
        "managers.tokenizer_manager.TokenizerManager.update_request_meta_info",
        ("self", "meta_info", "state", "customized_info", "index", "finish_reason"),
        "puts our report into meta_info as one object",
        "main",
        "AROUND",
        "frontend:update_meta_info",
    ),
    Hook(
        "entrypoints.openai.serving_chat.OpenAIServingChat._convert_to_internal_request",
        ("self", "request", "raw_request"),
        "turns a message boundary into a number of tokens",
        "main",
        "AFTER",
        "frontend:mark_boundary",
    ),
    Hook(
        "mem_cache.memory_pool.MHATokenToKVPool._create_buffers_normal",
        ("self",),
        "puts the pool's layers into one allocation",
        "scheduler",
        "AROUND",
        "pool:one_allocation",
    ),
    Hook(
        "layers.attention.graph_variants.create_attention_graph_variants",
        ("hf_config",),
        "captures decode graphs with and without contexts",
        "scheduler",
        "AROUND",
        "graph_variants:create_variants",
    ),
    Hook(
        "model_executor.runner.decode_cuda_graph_runner.build_replay_fb_view",
        ("forward_batch",),
        "keeps the rows' request ids in a replayed batch",
        "scheduler",
        "AFTER",
        "graph_variants:keep_rids",
    ),
    Hook(
        "managers.scheduler.Scheduler.get_output_streamer_class",
        ("self",),
        "compresses before the answer leaves, and reports in it",
        "scheduler",
        "AFTER",
        "reports:streamer_class",
    ),
    Hook(
        "managers.scheduler_components.internal_state.SchedulerInternalStateController.get_internal_state",
        ("self", "recv_req"),
        "shows pool and contexts in /server_info",
        "scheduler",
        "AFTER",
        "reports:internal_state",
    ),
)

SEAMS: Final[tuple[Seam, ...]] = (
    *HOOKS,
    Seam(
        "plugins.hook_registry.HookRegistry.register", ("target", "hook", "hook_type"), "installs the hooks"
    ),
    Seam("mem_cache.registry.register_radix_cache_backend", ("name", "factory"), "offers our radix cache"),
    Seam("mem_cache.registry.create_unified_radix_cache", ("ctx", "cache_class"), "builds it as SGLang does"),
    Seam("mem_cache.registry.TreeCacheBuildContext", ("tp_rank",), "tells which rank logs the settings"),
    Seam("layers.attention.attention_registry.register_attention_backend", ("name",), "offers our attention"),
    Seam("server_args.add_attention_backend_choices", (), "lets --attention-backend name it"),
    Seam("arg_groups.model_override_base.resolving_view", ("server_args",), "reads options as resolved"),
    Seam("runtime_context.get_memory", (), "tells whether we are selected"),
    Seam("mem_cache.common.evict_from_tree_cache", ("tree_cache", "num_tokens"), "makes room for a context"),
    Seam("mem_cache.radix_cache.RadixKey", ("token_ids", "extra_key", "limit", "cache_salt"), "names a path"),
    Seam("mem_cache.base_prefix_cache.MatchPrefixParams", ("key", "req"), "carries a match"),
    Seam("mem_cache.base_prefix_cache.InsertParams", ("key", "value"), "carries an insertion"),
    Seam("mem_cache.cache_init_params.CacheInitParams", ("component_registry_override",), "takes our ledger"),
    Seam(f"{_TREE}.match_prefix", ("params",), "is redirected"),
    Seam(f"{_TREE}.insert", ("params",), "takes the compressed node"),
    Seam(f"{_TREE}.checkpoint", ("req", "up_to"), "tells when a prompt is in the tree"),
    Seam(f"{_TREE}.flush_pending_backups", (), "is the safe point after every batch"),
    Seam(f"{_TREE}.reset", (), "forgets the contexts"),
    Seam(f"{_TREE}.lock", ("node_id",), "holds the plain path while it is read"),
    Seam(f"{_TREE}.unlock", ("lock",), "lets it go"),
    Seam(f"{_TREE}.path_device_indices", ("node",), "gives the plain path's slots"),
    Seam(f"{_TREE}._evict_device_leaf", ("node_id", "tracker"), "releases the plain path"),
    Seam(f"{_TREE}._all_reduce_attn_groups", ("tensor", "op"), "lets all ranks agree"),
    Seam(f"{_FULL}.reclaimable_value_len", ("node",), "counts B slots, not N"),
    Seam(f"{_FULL}.evict_component", ("node", "device_frees", "host_frees", "target"), "frees B slots"),
    Seam(f"{_FULL}.redistribute_on_node_split", ("new_parent", "child"), "must never split a context"),
    Seam(f"{_CORE}.node_by_id", ("node_id",), "finds the plain path again"),
    Seam("managers.scheduler.Scheduler.handle_generate_request", ("recv_req",), "takes requests of our own"),
    Seam("managers.io_struct.TokenizedGenerateReqInput", ("rid", "input_ids", "lora_id"), "describes them"),
    Seam("sampling.sampling_params.SamplingParams.normalize", ("tokenizer",), "completes their options"),
    Seam("layers.radix_attention.RadixAttention", (), "shows where the model's projections are"),
    Seam(f"{_STREAMER}.stream_output", ("reqs", "return_logprob"), "is preceded by waiting compressions"),
    Seam(f"{_STREAMER}.build_additional_customized_info", ("reqs",), "carries the reports"),
    Seam(f"{_STREAMER}.has_additional_customized_info", (), "opts in to it"),
    Seam(f"{_TREE}.touch_prefix", ("key",), "must not walk into a part of a context"),
    Seam("layers.attention.base_attn_backend.AttentionBackend", (), "is implemented"),
    Seam(f"{_CAPTURE}.get_capture_attention_variant", (), "tells which graph is captured"),
    Seam(
        f"{_NATIVE}.forward_extend", ("q", "k", "v", "layer", "forward_batch"), "serves plain rows on a CPU"
    ),
    Seam(
        f"{_NATIVE}.forward_decode", ("q", "k", "v", "layer", "forward_batch"), "serves plain rows on a CPU"
    ),
    Seam("model_executor.forward_batch_info.ForwardBatch", ("rids", "seq_lens"), "names the rows of a batch"),
    Seam("mem_cache.memory_pool.KVWriteLoc", (), "tells the pool where new K and V go"),
)


_FLASHINFER: Final = "layers.attention.flashinfer_backend"
_PREFILL_PLAN: Final = (
    *("wrapper_ragged", "wrapper_paged", "req_pool_indices", "paged_kernel_lens", "paged_kernel_lens_sum"),
    *("seq_lens", "prefix_lens", "kv_start_idx", "kv_indptr", "qo_indptr", "use_ragged", "spec_info"),
)
_DECODE_PLAN: Final = (
    *("wrapper", "paged_kernel_lens", "paged_kernel_lens_sum", "kv_indptr", "kv_start_idx", "spec_info"),
    "seq_lens_cpu",
)

# Checked where the CUDA backend is built: FlashInfer is not installed elsewhere.
CUDA_SEAMS: Final[tuple[Seam, ...]] = (
    Seam(f"{_FLASHINFER}.FlashInferAttnBackend.init_forward_metadata", ("forward_batch",), "plans a batch"),
    Seam(
        f"{_FLASHINFER}.FlashInferAttnBackend.init_forward_metadata_out_graph",
        ("forward_batch", "in_capture"),
        "plans before a graph is captured or replayed",
    ),
    Seam(
        f"{_FLASHINFER}.FlashInferAttnBackend._prepare_cuda_graph_metadata",
        ("bs", "num_tokens", "forward_mode", "spec_info"),
        "lets both graphs of a size share one wrapper",
    ),
    Seam(
        f"{_FLASHINFER}.FlashInferIndicesUpdaterDecode.call_begin_forward",
        _DECODE_PLAN,
        "plans decode over a row's own tokens",
    ),
    Seam(
        f"{_FLASHINFER}.FlashInferIndicesUpdaterPrefill.call_begin_forward",
        _PREFILL_PLAN,
        "plans extend over a row's own tokens",
    ),
    Seam(f"{_FLASHINFER}._safe_merge_state", ("v_a", "s_a", "v_b", "s_b"), "merges new and cached tokens"),
)


class SeamError(RuntimeError):
    """SGLang is not the one that this version was written for; one line per missing or changed symbol."""


def preflight(seams: tuple[Seam, ...] = SEAMS) -> list[str]:
    """One line per seam that is missing or has lost a parameter; empty when all is well."""
    return [line for seam in seams if (line := _check(seam)) is not None]


def require_hooks(role: Role) -> None:
    """Raise SeamError unless every hook of this process is in place: SGLang's loader only logs failures."""
    missing = [
        f"- {hook.path}: not hooked ({hook.why})"
        for hook in HOOKS
        if hook.role == role and not hasattr(pkgutil.resolve_name(hook.path), "__wrapped__")
    ]
    if missing:
        raise SeamError("adakv: hooks did not take; see the log above for the reason\n" + "\n".join(missing))


def _check(seam: Seam) -> str | None:
    try:
        found = pkgutil.resolve_name(seam.path)
    except (ImportError, AttributeError) as error:
        return f"- {seam.path}: missing ({error}); needed because it {seam.why}"
    if not seam.params:
        return None
    names = set(inspect.signature(inspect.unwrap(found)).parameters)
    if lost := [name for name in seam.params if name not in names]:
        return f"- {seam.path}: parameter {', '.join(lost)} missing; needed because it {seam.why}"
    return None
