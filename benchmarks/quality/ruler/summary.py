"""Tables from the JSON lines of run.py and peers.py: scores, and each relative to the full cache on the same rows.

A score is the mean over tasks of the mean over rows. Intervals hold 95 % of 2,000 bootstraps that draw the rows of
every task anew, the same ones for both sides.

Run: python benchmarks/quality/ruler/summary.py FILE.jsonl ... [--by-task] [--against METHOD]
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from ruler.results import Result, load

BOOTSTRAPS: Final = 2000
SEED: Final = 20240711

Cell = tuple[str, float]  # method and keep ratio
Scores = dict[str, dict[str, float]]  # by task, then by prompt


@dataclass(frozen=True)
class Comparison:
    """Mean scores in percent on the rows that both have, and their ratio with its interval, also in percent."""

    score: float
    reference: float
    relative: float
    low: float
    high: float
    num_rows: int


def by_cell(results: Iterable[Result]) -> dict[Cell, Scores]:
    """Scores of one model at one length."""
    cells: dict[Cell, Scores] = defaultdict(lambda: defaultdict(dict))
    for result in results:
        cells[result.method, result.keep_ratio][result.task][result.prompt] = result.score
    return cells


def mean(scores: Scores) -> float:
    """Over tasks, of the means over rows."""
    return float(np.mean([np.mean(list(rows.values())) for rows in scores.values()]))


def compare(scores: Scores, reference: Scores) -> Comparison | None:
    """Paired by prompt; None without a common row."""
    pairs = []
    for task, rows in sorted(scores.items()):
        common = sorted(rows.keys() & reference.get(task, {}).keys())
        if common:
            pairs.append(np.array([[rows[prompt], reference[task][prompt]] for prompt in common]))
    if not pairs:
        return None
    source = np.random.default_rng(SEED)
    drawn = [rows[source.integers(len(rows), size=(BOOTSTRAPS, len(rows)))].mean(axis=1) for rows in pairs]
    ours, theirs = np.mean(drawn, axis=0).T
    score, full = (float(value) for value in np.mean([rows.mean(axis=0) for rows in pairs], axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = np.quantile(100 * ours / theirs, (0.025, 0.975))
    relative = 100 * score / full if full else float("nan")
    return Comparison(score, full, relative, float(low), float(high), sum(map(len, pairs)))


def reference_of(cell: Cell, cells: dict[Cell, Scores], against: str | None) -> Cell | None:
    """The method compared with, at the same ratio if it has one; by default the full cache of the same program."""
    method, ratio = cell
    own = f"{method.rpartition('/')[0]}/FULL".lstrip("/")
    names = [against] if against else [own, "FULL"]
    found = [(name, at) for name in names for at in (ratio, 1.0) if (name, at) in cells]
    return found[0] if found else None


def report(results: list[Result], *, tasks: bool = False, against: str | None = None) -> str:
    """Markdown, one part per model and length."""
    parts = defaultdict(list)
    for result in results:
        parts[result.model, result.length].append(result)
    lines = []
    for (model, length), part in sorted(parts.items()):
        cells = by_cell(part)
        lines += [f"## {model}, {length} tokens", "", *_methods(cells, against)]
        lines += _tasks(cells) if tasks else []
    return "\n".join(lines)


def _methods(cells: dict[Cell, Scores], against: str | None) -> list[str]:
    ratios = sorted({ratio for _, ratio in cells}, reverse=True)
    names = sorted({method for method, _ in cells}, key=lambda name: ("FULL" not in name, name))
    lines = [
        f"| method | {' | '.join(f'{ratio:g}' for ratio in ratios)} |",
        "| --- |" + " --- |" * len(ratios),
    ]
    for name in names:
        shown = [_cell((name, ratio), cells, against) for ratio in ratios]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return [*lines, ""]


def _cell(cell: Cell, cells: dict[Cell, Scores], against: str | None) -> str:
    if cell not in cells:
        return ""
    scores = cells[cell]
    reference = reference_of(cell, cells, against)
    rows = sum(map(len, scores.values()))
    shown = f"{mean(scores):.1f} [{len(scores)} tasks, {rows} rows]"
    if reference is None or reference == cell or (found := compare(scores, cells[reference])) is None:
        return shown
    paired = "" if found.num_rows == rows else f" on {found.num_rows} common rows"
    return f"{mean(scores):.1f} ({found.relative:.1f} %, {found.low:.1f} to {found.high:.1f}){paired}"


def _tasks(cells: dict[Cell, Scores]) -> list[str]:
    order = sorted(cells, key=lambda cell: ("FULL" not in cell[0], cell[0], -cell[1]))
    tasks = sorted({task for scores in cells.values() for task in scores})
    heads = [method if "FULL" in method else f"{method} {ratio:g}" for method, ratio in order]
    lines = [f"| task | {' | '.join(heads)} |", "| --- |" + " --- |" * len(order)]
    for task in tasks:
        rows = [cells[cell].get(task, {}) for cell in order]
        means = (f"{np.mean(list(scores.values())):.1f}" if scores else "" for scores in rows)
        lines.append(f"| {task} | {' | '.join(means)} |")
    return [*lines, ""]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--by-task", action="store_true", help="also a table of tasks and methods")
    parser.add_argument("--against", help="compare with this method instead of the full cache")
    options = parser.parse_args()
    print(report(load(options.files), tasks=options.by_task, against=options.against))


if __name__ == "__main__":
    main()
