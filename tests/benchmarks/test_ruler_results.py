"""Scores, result files that are continued, and tables."""

import math
from dataclasses import replace

import pytest
from ruler.metrics import string_match_all, string_match_part
from ruler.results import Result, append, known, load, save
from ruler.summary import by_cell, compare, reference_of, report

RESULT = Result(
    model="m",
    task="vt",
    index=0,
    seed=0,
    length=100,
    prompt="p",
    method="FULL",
    keep_ratio=1.0,
    prediction="",
    answers=["a"],
    score=100.0,
    context_tokens=90,
    cached_tokens=90,
    owned_slots=90,
    seconds=0.1,
)


@pytest.mark.parametrize(
    ("prediction", "answers", "every", "some"),
    [
        ("1. Apple 2. PEAR", ["apple", "pear"], 100, 100),
        ("an apple", ["apple", "pear"], 50, 100),
        ("nothing", ["apple", "pear"], 0, 0),
        ("", ["apple"], 0, 0),
        ("1234\n567", ["1234567"], 100, 100),
        ("a pineapple", ["apple"], 100, 100),
    ],
)
def test_metrics_look_for_the_answers_in_any_case(prediction, answers, every, some):
    assert string_match_all(prediction, answers) == every
    assert string_match_part(prediction, answers) == some


def test_results_come_back_and_other_or_broken_lines_do_not(tmp_path):
    path = tmp_path / "folder" / "results.jsonl"
    assert known(path) == set()
    append(path, {"run": {"gpu": None}})
    save(path, RESULT)
    save(path, replace(RESULT, index=1, prediction="ü\n"))
    save(path, replace(RESULT, score=0.0))  # measured again: the last one counts
    with path.open("a") as file:
        file.write('{"model": "m", "ta')
    assert load([path]) == [replace(RESULT, score=0.0), replace(RESULT, index=1, prediction="ü\n")]
    assert known(path) == {RESULT.key, replace(RESULT, index=1).key}


def test_a_result_of_other_tokens_or_settings_has_another_key():
    others = [{"prompt": "q"}, {"method": "keydiff:adakv"}, {"keep_ratio": 0.5}, {"model": "n"}, {"index": 1}]
    assert len({RESULT.key, *(replace(RESULT, **other).key for other in others)}) == 1 + len(others)


def results(method, ratio, scores):
    """`scores`: by task, one per row."""
    return [
        replace(
            RESULT, method=method, keep_ratio=ratio, task=task, index=index, prompt=f"{task}{index}", score=s
        )
        for task, rows in scores.items()
        for index, s in enumerate(rows)
    ]


def compared(ours, full):
    cells = by_cell([*results("a:b", 0.5, ours), *results("FULL", 1.0, full)])
    return compare(cells["a:b", 0.5], cells["FULL", 1.0])


def test_tasks_count_alike_however_many_rows_they_have():
    found = compared({"vt": [100.0], "cwe": [0.0] * 9}, {"vt": [100.0], "cwe": [100.0] * 9})
    assert (found.score, found.reference, found.relative, found.num_rows) == (50, 100, 50, 10)
    assert (found.low, found.high) == (50, 50)  # no row differs from another of its task


def test_intervals_are_paired_and_repeatable():
    full = {"vt": [0.0, 100.0] * 20, "cwe": [100.0, 50.0] * 20}
    assert compared(full, full) == compared(full, full)
    assert (compared(full, full).low, compared(full, full).high) == (100, 100)  # whatever rows are drawn
    some = {"vt": full["vt"], "cwe": [100.0, 0.0] * 20}
    found = compared(some, full)
    assert found.relative == pytest.approx(80) and 65 < found.low < 80 < found.high < 95


def test_only_rows_that_both_have_are_compared():
    found = compared({"vt": [0.0]}, {"vt": [100.0, 0.0], "cwe": [100.0]})
    assert (found.score, found.reference, found.num_rows) == (0, 100, 1)
    assert compared({"vt": [0.0]}, {"cwe": [0.0]}) is None
    assert math.isnan(compared({"vt": [0.0]}, {"vt": [0.0]}).relative)


def test_a_method_is_compared_with_its_own_programs_full_cache():
    cells = dict.fromkeys([("FULL", 1.0), ("kvpress/FULL", 1.0), ("kvpress/a:b", 0.5), ("a:b", 0.5)], {})
    assert reference_of(("a:b", 0.5), cells, None) == ("FULL", 1.0)
    assert reference_of(("kvpress/a:b", 0.5), cells, None) == ("kvpress/FULL", 1.0)
    assert reference_of(("kvpress/a:b", 0.5), cells, "a:b") == ("a:b", 0.5)
    assert reference_of(("a:b", 0.5), {("a:b", 0.5): {}}, None) is None


def test_the_tables_hold_every_method_ratio_and_task():
    full, half = {"vt": [100.0, 100.0], "cwe": [50.0, 50.0]}, {"vt": [100.0, 100.0], "cwe": [25.0, 25.0]}
    text = report([*results("FULL", 1.0, full), *results("a:b", 0.5, half)], tasks=True)
    assert "## m, 100 tokens" in text
    assert "| FULL | 75.0 [2 tasks, 4 rows] |  |" in text
    assert "| a:b |  | 62.5 (83.3 %, 83.3 to 83.3) |" in text
    assert "| cwe | 50.0 | 25.0 |" in text
