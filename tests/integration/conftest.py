"""SGLang in this process, configured as a CPU server that selects adakv would be."""

import os

import pytest

os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")  # read when SGLang is imported


@pytest.fixture(scope="session", autouse=True)
def published_options():
    """Publish server options for the parts of SGLang that ask for them."""
    from sglang.srt.runtime_context import get_context

    override = get_context().override_server_args(device="cpu", radix_cache_backend="adakv")
    override.install()
    yield
    override.restore()


@pytest.fixture
def bench():
    """A small scheduler driven by hand."""
    from scheduler_bench import SchedulerBench

    return SchedulerBench()


@pytest.fixture
def prepared(bench):
    """A bench with DOCUMENT compressed: N tokens in B slots."""
    from scheduler_bench import COMPRESS, DOCUMENT

    bench.run(bench.submit([*DOCUMENT, 1], adakv=COMPRESS, max_new_tokens=1))
    yield bench
    bench.check()
