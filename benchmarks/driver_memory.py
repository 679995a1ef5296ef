"""Is the driver's memory flat? Pools, scores and pairs of 1,000 to 100,000 prompts with a trivial generator and scorer.

    python benchmarks/driver_memory.py --prompts 1000 10000 100000

Each size runs in a fresh driver on a Ray of its own; the real streams run, only the image of a prompt is 8 x 8 noise. Writes
benchmarks/results/driver_memory.{json,md}: seconds, rows a second, and the driver's peak resident memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa

from raypref import cli
from raypref.artifacts import POOL, Store
from raypref.curriculum import plan
from raypref.images import encode
from raypref.recipes import configure
from raypref.remote import cluster, tables
from raypref.remote.images import Painter, build_images

RESULTS = Path(__file__).parent / "results"


class Noise(Painter):
    """A generator that costs nothing: two 8 x 8 images a prompt."""

    def __init__(self, work, device: str):
        self.work, self.store = work, Store(work.store)

    def paint(self, task, index, real):
        rng = np.random.default_rng(0)
        rows = [
            {
                "prompt_id": row["id"],
                "prompt": row["prompt"],
                "images": [encode(rng.integers(0, 256, (8, 8, 3), np.uint8), "png") for _ in range(2)],
                "latents": [rng.standard_normal((4, 2, 2)).astype(np.float16).tobytes() for _ in range(2)],
                "latent_shape": [4, 2, 2],
                "seeds": [0, 1],
                "strengths": [1.0, 1.0],
            }
            for row in index
        ]
        return pa.Table.from_pylist(rows, POOL), []


def once(prompts: int) -> dict:
    """Index, pool, scores and pairs of so many prompts in this process."""
    with tempfile.TemporaryDirectory() as folder:
        source, store = Path(folder, "prompts.txt"), Store(f"{folder}/run")
        source.write_text("".join(f"prompt number {i}\n" for i in range(prompts)))
        stage = {"winner": {"kind": "generated", "count": 2}, "loser": {"kind": "generated", "count": 2}}
        config = configure(
            "diffusion_dpo_sd15",
            [
                {
                    "data": {
                        "prompts": {"kind": "prompts", "path": str(source)},
                        "holdout": 0.001,
                        "image_format": "png",
                    },
                    "scorers": {"preference": {"kind": "color_statistics"}},
                    "stages": {"dpo": stage},
                    "resources": {"generate": {"cpus": 0.5, "actors": 2}, "score": {"cpus": 0.5, "actors": 2}},
                }
            ],
        )
        cluster.connect()
        tasks = [task for task in plan(config) if "eval" not in task.name]
        wanted = [t for t in tasks if t.model == "base" and t.kind in ("pool", "score")]
        before, started = _peak(), time.monotonic()
        tables.build_index(tasks[0], store, config)
        build_images(wanted, store, store, config, lambda number: None, Noise)
        pairs = next(t for t in tasks if t.kind == "pairs" and t.name != "held_out")
        tables.build_pairs(pairs, store, store, lambda number: None)
        seconds = time.monotonic() - started
    return {"prompts": prompts, "seconds": round(seconds, 1), "prompts_per_s": round(prompts / seconds, 1),
            "driver_start_mb": before, "driver_peak_mb": _peak()}  # fmt: skip


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--prompts", type=int, nargs="+", default=[1000, 10_000, 100_000])
    options.add_argument("--once", type=int, help=argparse.SUPPRESS)
    options.add_argument("--out", type=Path, default=RESULTS)
    arguments = options.parse_args()
    if arguments.once:
        print(json.dumps(once(arguments.once)))
        return
    rows = []
    for number in arguments.prompts:
        output = subprocess.run(
            [sys.executable, __file__, "--once", str(number)], stdout=subprocess.PIPE, text=True, check=True
        ).stdout
        rows.append(json.loads(output.splitlines()[-1]))
        print(rows[-1], flush=True)
    command = "python benchmarks/driver_memory.py --prompts " + " ".join(map(str, arguments.prompts))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "driver_memory.json").write_text(json.dumps({"command": command, "rows": rows}, indent=1) + "\n")
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    lines += ["| " + " | ".join(f"{value:,}" for value in row.values()) + " |" for row in rows]
    (arguments.out / "driver_memory.md").write_text(f"`{command}`\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    sys.exit(cli.guarded(main))
