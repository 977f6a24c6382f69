"""What the user sees while a command waits: a bar on a terminal, plain lines elsewhere."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Self, TextIO

TICK_S: Final = 0.5


class Progress:
    """Of `total` steps. The bar is tqdm's, on stderr; without tqdm or a terminal there is a line per step."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._bar = _bar(total) if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    @contextmanager
    def waiting_for(self, name: str) -> Iterator[None]:
        """One step; on a terminal its time runs on."""
        if self._bar is None:
            sys.stderr.write(f"{self._done + 1}/{self._total} {name} ...\n")
            yield
        else:
            self._bar.set_postfix_str(name)
            with _ticking(self._bar):
                yield
            self._bar.update(1)
        self._done += 1

    def say(self, line: str, stream: TextIO) -> None:
        """Print a line above the bar."""
        if self._bar is None:
            stream.write(line + "\n")
            stream.flush()
        else:
            self._bar.write(line, file=stream)


def _bar(total: int) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    shape = "{n_fmt}/{total_fmt} |{bar:20}| {elapsed}{postfix}"
    return tqdm(total=total, file=sys.stderr, leave=False, bar_format=shape, dynamic_ncols=True)


@contextmanager
def _ticking(bar: Any) -> Iterator[None]:
    """Draw the bar again and again: one request says nothing until it is answered."""
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(TICK_S):
            bar.refresh()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
