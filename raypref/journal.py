"""The metrics of a stage as files in the run directory, and to trackers. Imports no torch: the driver reads them too."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from raypref.artifacts import Store
from raypref.trackers import open_tracker

if TYPE_CHECKING:
    from raypref.workers import Context, Job


class MetricsLog:
    """Rank 0's metrics: JSON lines in parts between checkpoints (object stores cannot append), and the trackers.

    A resumed run goes on with the part that begins at its checkpoint, so no step is ever there twice.
    """

    def __init__(self, job: Job, context: Context, start: int):
        self.job, self.store, self.start = job, Store(job.run), start
        self.rows: list[dict] = []
        self.trackers = []
        if context.rank == 0:
            local = self.store.local
            self.temporary = None if local else tempfile.TemporaryDirectory()
            self.folder = local / job.path if local else Path(self.temporary.name)
            self.folder.mkdir(parents=True, exist_ok=True)
            config = job.config.model_dump(mode="json")
            self.trackers = [
                open_tracker(name, self.folder, f"{job.run}/{job.path}", config, start)
                for name in job.config.training.trackers
            ]
        self.active = context.rank == 0

    def write(self, step: int, row: dict[str, float]) -> None:
        if not self.active:
            return
        self.rows.append(
            {"step": step, "time": round(time.time(), 3)} | {key: float(value) for key, value in row.items()}
        )
        text = "".join(json.dumps(r) + "\n" for r in self.rows)
        self.store.write(f"{self.job.path}/metrics/{self.start:08d}.jsonl", text.encode())
        for log, _ in self.trackers:
            log(step, row)

    def close_part(self, step: int) -> None:
        self.rows, self.start = [], step
        if self.active and self.temporary:
            self.store.push(self.folder, self.job.path)  # the trackers' files so far

    def close(self) -> None:
        """Join the parts into `metrics.jsonl`."""
        if not self.active:
            return
        for _, close in self.trackers:
            close()
        if self.temporary:
            self.store.push(self.folder, self.job.path)
        self.store.write(f"{self.job.path}/metrics.jsonl", read_parts(self.store, self.job.path))


def read_parts(store: Store, path: str, since: int = 0) -> bytes:
    """The JSON lines of a stage so far, from the part with the step `since` on."""
    names = [name for name in store.names(f"{path}/metrics") if name.endswith(".jsonl")]
    first = max((i for i, name in enumerate(names) if int(name.removesuffix(".jsonl")) <= since), default=0)
    return b"".join(store.read(f"{path}/metrics/{name}") for name in names[first:])
