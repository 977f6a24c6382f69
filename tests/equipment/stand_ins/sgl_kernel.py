"""Test equipment: stand-in for SGLang's compiled kernel package on a CPU without AMX.

SGLang in CPU mode imports names from `sgl_kernel` when its modules load; PyPI has no CPU wheel of it.
A dense model on the torch_native attention backend calls just one of them, given here in torch.
Deliberately no `torch.ops.sgl_kernel`: its absence is how SGLang learns that there are no AMX kernels.
"""

__version__ = "0.0.0+adakv.test.stand.in"


def assign_req_to_token_pool_cpu(
    req_pool_indices, req_to_token, start_offset, end_offset, out_cache_loc, pool_len
):
    """Write each request's new token slots into its row of the request-to-token table."""
    taken = 0
    spans = zip(req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True)
    for row, start, end in spans:
        slots = out_cache_loc[taken : taken + end - start]
        req_to_token[row, start:end] = slots.to(req_to_token.dtype)
        taken += end - start


def __getattr__(name):
    """Any other kernel can be imported, and says what it is when called."""
    if name.startswith("__"):
        raise AttributeError(name)

    def absent(*args, **kwargs):
        raise NotImplementedError(f"sgl_kernel.{name}: this is the CPU stand-in of adakv-sglang's tests")

    return absent
