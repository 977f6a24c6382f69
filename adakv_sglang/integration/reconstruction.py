"""Lets the model repeat a context, chunk by chunk, by ordinary requests of our own: what KVzip scores by.

A prepared request whose scorer wants this is held back when it has ended; its context is repeated by requests
that no client sent: the context, an instruction, and one chunk of it. They run one after the other on the plain
path, chunked, batched and retracted like any other, and enter neither the tree nor any answer. When the last one has
ended the context is compressed, and the held answer leaves with the report.
"""

import logging
from array import array
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
from sglang.srt.sampling.sampling_params import SamplingParams

from adakv_sglang.integration.captures import ChunkCapture
from adakv_sglang.integration.radix_cache import AdaKVRadixCache
from adakv_sglang.integration.repeat_prompt import RepeatPrompt
from adakv_sglang.integration.request_state import PrepareOrder, RequestState, RequestStates

logger = logging.getLogger(__name__)
PATIENCE: Final = (
    64  # batches that pass while other requests wait, before one of ours may stand in line with them
)


@dataclass(slots=True, eq=False)
class _Job:
    """One context being repeated. chunk: the next one. running: our request under way. waited: batches."""

    state: RequestState
    order: PrepareOrder
    rid: str
    chunk: int = 0
    running: Any = None
    waited: int = 0


class Reconstructor:
    """One per scheduler process; every rank of a group does the same at the same step.

    `step` is called after every batch, when its results are in the tree and before they are streamed.
    """

    def __init__(self, scheduler: Any, tree: AdaKVRadixCache) -> None:
        self._scheduler, self._tree = scheduler, tree
        self._prompt = RepeatPrompt.of(scheduler.tokenizer)
        self._jobs: deque[_Job] = deque()
        self._held: list[Any] = []
        self._own: dict[str, _Job] = {}

    def step(self, reqs: Iterable[Any]) -> tuple[list[Any], list[Any]]:
        """Look at a batch's requests and go on; returns those whose output may leave, and held ones that may now."""
        leaving = []
        for req in reqs:
            if req.rid in self._own:
                self._ended(req)
            elif not self._holds(req):
                leaving.append(req)
        self._take_orders()
        self._advance()
        done = [req for req in self._held if not self._is_pending(req)]
        self._held = [req for req in self._held if req not in done]
        return leaving, done

    def _holds(self, req: Any) -> bool:
        """Keep an ended request whose context is still to be repeated."""
        if not self._is_pending(req) or not req.finished() or req.finished_output:
            return False
        if req not in self._held:
            self._held.append(req)
        return True

    @staticmethod
    def _is_pending(req: Any) -> bool:
        state = RequestStates.of(req)
        return state is not None and state.order is not None and state.order.reconstruction is not None

    def _take_orders(self) -> None:
        """Orders whose context is in the tree by now."""
        for state, rid in self._tree.take_unrepeated():
            assert state.order is not None
            self._jobs.append(_Job(state, state.order, rid))

    def _advance(self) -> None:
        """Start our next request, if none is under way and no one else waits, or has done so for long."""
        while self._jobs:
            job = self._jobs[0]
            if job.running is not None and not self._is_lost(job.running):
                return
            if job.running is not None:
                self._give_up(job, "one of the requests that repeat it was aborted")
                continue
            if self._tree.contexts.recall(job.order.key, job.order.config) is not None:
                self._finish(job)
                continue
            if self._scheduler.waiting_queue and job.waited < PATIENCE:
                job.waited += 1
                return
            if problem := self._start(job):
                self._give_up(job, problem)
                continue
            return

    def _start(self, job: _Job) -> str | None:
        """Put the request for the next chunk in line; returns why it cannot be."""
        gatherer, key = job.order.reconstruction, job.order.key
        assert gatherer is not None
        tokens = array("q")
        tokens.frombytes(key.tokens)
        tokens.extend(self._prompt.tokens(tokens, gatherer.chunks, job.chunk))
        longest = self._scheduler.max_req_input_len
        if len(tokens) >= longest:
            return (
                f"repeating it takes {len(tokens)} tokens and this server allows {longest - 1}; use another "
                "scorer, a shorter context, or a larger --context-length or pool"
            )
        rid = f"{job.rid}-adakv-{job.chunk}"  # an abort of the client's request reaches ours: ids by prefix
        try:
            self._scheduler.handle_generate_request(_request(rid, tokens, job.order.lora_id))
        except Exception as error:  # whatever SGLang holds against our request, the server goes on
            logger.exception("a request that repeats a context could not be made")
            return f"{type(error).__name__}: {error}"
        waiting = self._scheduler.waiting_queue
        if not waiting or waiting[-1].rid != rid:
            return "the server's queue is full; send it again"
        req = waiting[-1]
        req.extra_key, req.cache_salt, req.skip_radix_cache_insert = key.extra_key, key.cache_salt, True
        state = RequestState(key.extra_key)
        state.repeats = ChunkCapture(gatherer, job.chunk, key.num_tokens, len(tokens))
        self._tree.states.attach(req, state)
        self._own[rid], job.running, job.waited = job, req, 0
        return None

    def _is_lost(self, req: Any) -> bool:
        """Whether an abort took our request out of the queue before it ran: such a request never ends."""
        return not (req.finished() or req.kv.holds_kv or req in self._scheduler.waiting_queue)

    def _ended(self, req: Any) -> None:
        """One of ours has produced its token."""
        job = self._own[req.rid]
        if not req.finished() or job.running is not req:
            return
        req.finished_output, job.running = True, None
        del self._own[req.rid]
        if (reason := req.finished_reason.to_json()).get("type") == "abort":
            self._give_up(job, f"a request that repeats it was aborted: {reason.get('message', '')}")
            return
        job.chunk += 1
        gatherer = job.order.reconstruction
        if gatherer is not None and job.chunk == len(gatherer.chunks):
            self._finish(job)

    def _finish(self, job: _Job) -> None:
        self._jobs.remove(job)
        self._tree.finish_repeated(job.state)

    def _give_up(self, job: _Job, why: str) -> None:
        self._jobs.remove(job)
        self._own = {rid: other for rid, other in self._own.items() if other is not job}
        job.state.order, job.state.wanted = None, None
        job.state.refusal = f"the context was not compressed: {why}"


def _request(rid: str, tokens: "array[int]", lora_id: str | None) -> TokenizedGenerateReqInput:
    sampling = SamplingParams(max_new_tokens=1, temperature=0.0, ignore_eos=True)
    sampling.normalize(None)
    return TokenizedGenerateReqInput(
        rid=rid,
        input_text="",
        input_ids=tokens,
        input_embeds=None,
        mm_inputs=None,
        token_type_ids=None,
        sampling_params=sampling,
        return_logprob=False,
        logprob_start_len=-1,
        top_logprobs_num=0,
        token_ids_logprob=None,
        stream=False,
        lora_id=lora_id,
    )
