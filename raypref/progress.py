"""Progress for people: a bar on a terminal, a readable line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

INTERVAL = 10.0  # seconds between lines where there is no terminal


class Progress:
    """Progress of one group of tasks: `with Progress("pool base", 1536, "images") as p: p.add(64)`."""

    def __init__(self, name: str, total: int, unit: str):
        self.name, self.total, self.unit, self.done, self.note = name, total, unit, 0, ""
        self.started = self.printed = time.monotonic()
        self.first: tuple[float, int] | None = None  # when the first items came: starting up is no measure of the rate
        self.bar = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self.bar = tqdm(total=self.total, unit=f" {self.unit}", desc=self.name, dynamic_ncols=True)
        else:
            self._print("starting")
        return self

    def __exit__(self, kind, *_) -> None:
        if self.bar is not None:
            self.bar.close()
        elif kind is None:
            self._print(f"done in {_clock(time.monotonic() - self.started)}")

    def add(self, number: int, note: str = "") -> None:
        """Count `number` more; `note` (the newest loss, say) is shown with it."""
        self.done += number
        self.note = note
        self.first = self.first or (time.monotonic(), self.done)
        if self.bar is not None:
            self.bar.update(number)
            self.bar.set_postfix_str(note, refresh=False)
        elif time.monotonic() - self.printed > INTERVAL:
            since, before = self.first
            elapsed = time.monotonic() - since
            rate = (self.done - before) / elapsed if elapsed > 1 else 0
            left = f"{rate:.1f} {self.unit}/s, {_clock((self.total - self.done) / rate)} left" if rate else "under way"
            self._print(left + (f", {note}" if note else ""))

    def _print(self, text: str) -> None:
        self.printed = time.monotonic()
        count = f"{self.done}/{self.total}" if self.total else f"{self.done}"
        print(f"{time.strftime('%H:%M:%S')}  {self.name:<26} {count:>11} {self.unit:<7} {text}", flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
