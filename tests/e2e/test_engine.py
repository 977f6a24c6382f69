"""The offline engine, by running the example as a user would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import local_server
import pytest

pytestmark = pytest.mark.server

EXAMPLE = Path(local_server.__file__).parent / "offline_engine.py"


def test_the_offline_engine_prepares_and_reuses_a_text(model, servers):
    servers.stop()
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "SGLANG_USE_CPU_ENGINE": "1"}
    command = [sys.executable, str(EXAMPLE), "--model", model]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    prepared, *answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert prepared["compressed"] and len(answers) == 2
    assert prepared["keep_ratio"] == 0.3, "adakv_sglang.enable reaches the scheduler"
    for answer in answers:
        assert answer["context_id"] == prepared["context_id"]
        assert answer["cached_tokens"] >= prepared["logical_tokens"] > 1500
