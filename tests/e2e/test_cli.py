"""The command `adakv` against a real server."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from adakv_sglang.cli import main

pytestmark = pytest.mark.server


@pytest.fixture
def run(adakv, capfd, monkeypatch):
    """Runs the command against the server: exit status, stdout, stderr."""
    monkeypatch.setenv("ADAKV_URL", adakv.url)

    def call(*arguments):
        status = main([str(argument) for argument in arguments])
        said = capfd.readouterr()
        return status, said.out, said.err

    return call


@pytest.fixture
def document(tmp_path):
    """A text of some hundred tokens."""
    path = tmp_path / "document.txt"
    path.write_text(" ".join(f"Chapter {n} tells what happened on day {n}." for n in range(40)))
    return path


def test_a_file_is_added_listed_pinned_shown_drawn_and_dropped(run, adakv, document, tmp_path):
    status, out, err = run("contexts", "add", document, "--keep-ratio", "0.3", "--scorer", "snapkv", "--json")
    assert status == 0, err
    made = json.loads(out)[0]["context"]
    context_id, start = made["id"], made["id"][:8]
    assert made["state"] == "ready" and 0 < made["slots"] < 0.4 * made["tokens"]

    assert run("contexts", "add", document, "--keep-ratio", "0.3", "--scorer", "snapkv")[1].startswith(
        context_id
    )
    status, out, _ = run("contexts", "list", "--state", "ready")
    assert status == 0 and [line.split()[0] for line in out.splitlines()] == ["id", context_id]
    assert run("contexts", "pin", start)[1].endswith("pinned\n")
    status, out, _ = run("contexts", "show", start)
    assert status == 0 and "ready, pinned, found by new requests" in out and "Chapter 0 tells" in out
    layers = out.split("\n\n")[1].splitlines()[1:]
    assert [line.split()[0] for line in layers] == [str(layer) for layer in range(30)]

    picture = tmp_path / "budgets.png"
    assert run("picture", start, "--out", picture)[0] == 0
    with Image.open(picture) as image:
        assert image.format == "PNG"

    assert run("contexts", "unpin", start)[0] == 0
    status, out, _ = run("contexts", "drop", start)
    assert status == 0 and out.startswith(context_id) and out.endswith("dropped\n")
    assert run("contexts", "list", "--state", "ready") == (0, "no ready contexts\n", "")
    assert run("picture", start, "--out", picture)[0] == 1


def test_what_the_server_refuses_is_one_line_and_the_end_is_1(run, adakv):
    status, out, err = run("contexts", "add", "--text", "Too short.", "--json")
    assert status == 1 and "error" in json.loads(out)[0]
    assert err.splitlines()[-1].startswith("adakv: --text 1: ") and "Traceback" not in err
    status, _, err = run("contexts", "add", "--text", "Too short.", "--keep-ratio", "7")
    assert status == 1 and "keep_ratio" in err
    status, _, err = run("contexts", "show", "no-such-context")
    assert status == 1 and "no context begins so" in err


def test_a_conversation_is_added_with_a_message_that_every_head_keeps(run, adakv, document, tmp_path):
    path, rules = tmp_path / "chat.json", "Answer in one short sentence."
    messages = [{"role": "system", "content": rules}, {"role": "user", "content": document.read_text()}]
    path.write_text(json.dumps(messages))
    options = ("--messages", path, "--protect-message", "0", "--keep-ratio", "0.3", "--json")
    status, out, err = run("contexts", "add", *options)
    [made] = json.loads(out)
    assert status == 0 and made["context"]["state"] == "ready", err
    assert rules in made["context"]["text_head"]


def test_the_doctor_finds_that_this_server_could_start(model):
    command = [sys.executable, "-m", "adakv_sglang.cli", "doctor", "--model", model, "--json"]
    options = ["--device", "cpu", "--dtype", "float32"]
    variables = {**os.environ, "SGLANG_USE_CPU_ENGINE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, "--", *options], capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {each["state"] for each in json.loads(done.stdout)["checks"]} == {"ok"}
