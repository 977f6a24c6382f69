"""`adakv methods`."""

import json
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from adakv_sglang import AdaKVConfig
from adakv_sglang.cli import main
from adakv_sglang.cli.methods import NEEDS
from adakv_sglang.config import ALLOCATORS, SCORERS
from adakv_sglang.core.budgets import ALLOCATOR_SPECS
from adakv_sglang.core.scorers import SCORERS as SPECS

OTHERWISE = "unless the settings say otherwise"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def listed(capsys):
    """What `adakv methods --json` prints."""
    assert main(["methods", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_scorer_and_allocator_of_the_settings_is_listed_in_their_order(listed):
    assert [each["name"] for each in listed["scorers"]] == list(SCORERS)
    assert [each["name"] for each in listed["allocators"]] == list(ALLOCATORS) == list(ALLOCATOR_SPECS)


def test_what_is_said_of_a_scorer_is_its_spec(listed):
    for each in listed["scorers"]:
        spec = SPECS[each["name"]]
        assert (each["needs"], each["cost"], each["source"]) == (spec.needs, spec.cost, spec.source or None)
        assert each["needs"] in NEEDS


def test_the_defaults_are_marked(listed):
    marked = [each["name"] for kind in listed.values() for each in kind if each["default"]]
    assert marked == [AdaKVConfig().scorer, AdaKVConfig().allocator]
    ahead = [each["name"] for each in listed["scorers"] if each["default_prepared"]]
    assert ahead == [AdaKVConfig().prepared_scorer]


def test_the_documentation_says_the_same(listed):
    rows = {}
    for line in (ROOT / "docs" / "methods.md").read_text(encoding="utf-8").splitlines():
        if found := re.match(r"\| `([\w-]+)` \|", line):
            assert rows.setdefault(found[1], line) is line, f"{found[1]}: two rows"
    assert list(rows) == [*SCORERS, *ALLOCATORS]
    for each in [*listed["scorers"], *listed["allocators"]]:
        source = f"[{each['source']}](https://arxiv.org/abs/{each['source']})"
        cells = [cell.strip() for cell in rows[each["name"]].split("|")[2:-1]]
        assert cells[-1] == (source if each["source"] else "a baseline")
        if "needs" in each:
            assert cells[1:3] == [NEEDS[each["needs"]], each["cost"]]


def test_the_readme_names_them_all():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in (*SCORERS, *ALLOCATORS) if f"`{name}`" not in text] == []
    assert "(docs/methods.md)" in text


def test_sources_are_arxiv_numbers(listed):
    for each in [*listed["scorers"], *listed["allocators"]]:
        assert each["source"] is None or re.fullmatch(r"\d{4}\.\d{5}", each["source"])


def test_columns_are_aligned(capsys):
    assert main(["methods"]) == 0
    scorers, allocators, note = capsys.readouterr().out.split("\n\n")
    for table, names in ((scorers, SCORERS), (allocators, ALLOCATORS)):
        head, *rows = table.splitlines()
        assert [row.split()[0] for row in rows] == list(names)
        starts = [match.start() for match in re.finditer(r"(?<!\S)\S+(?: \S+)*", head)]
        for row in rows:
            assert all(
                row[start] != " " and (start == 0 or row[start - 2 : start] == "  ") for start in starts
            )
    assert note == f"* {OTHERWISE}\n** for contexts that are prepared ahead of time, {OTHERWISE}\n"


@pytest.mark.parametrize("arguments", [[], ["serve"], ["methods", "--yaml"], ["methods", "more"]], ids=str)
def test_anything_else_ends_with_2_and_the_usage(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: adakv" in capsys.readouterr().err


def test_as_a_program():
    command = [sys.executable, "-m", "adakv_sglang.cli", "methods"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "keydiff_weighted *" in done.stdout and done.stderr == ""
    assert "kvzip_weighted **" in done.stdout and "** for contexts that are prepared ahead" in done.stdout


def test_the_console_script_is_this_function():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    module, _, name = scripts["adakv"].partition(":")
    assert getattr(import_module(module), name) is main
