"""A small run, the pieces to execute a part of it, and what tests ask about the files it leaves."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from safetensors import safe_open

from raypref.artifacts import Store, read_manifest
from raypref.config import RunConfig
from raypref.curriculum import plan
from raypref.mini import renderer
from raypref.recipes import configure
from raypref.rundir import claim
from raypref.tasks import Task, waves

REPO = Path(__file__).parents[2]
SCORERS = "tests.remote.scorers"
POOL_KINDS = ("index", "pool", "score")


def overlay(base: Path, real: Path | None = None) -> dict:
    """The recipe mini made small: stage easy, and with a folder of real images stage hard; everything else as it is."""
    train = {"steps": 16, "batch_size": 4, "optim": {"lr": 1e-3, "warmup": 2}, "lora": {"unet": {"rank": 2}}}
    generated = {"kind": "generated", "count": 4}
    return {
        "seed": 5,
        "model": {"base": str(base), "resolution": 16},
        "data": {
            "prompts": {"kind": "renderer", "seed": 1, "count": 48},
            "real": {"kind": "folder", "path": str(real)} if real else None,
            "eval_prompts": {"kind": "renderer", "seed": 3, "count": 8},
            "eval_real": {"kind": "renderer", "seed": 4, "count": 8} if real else None,
            "eval_limit": 8,
            "shard_size": 4,
            "max_rejected": 0.5,
        },
        "sampling": {"steps": 10, "batch_size": 8},
        "scorers": {
            "preference": {"kind": f"{SCORERS}:Brightness"},
            "features": {"kind": "color_statistics"},
            "clip_t": None,
            "attribute_accuracy": None,
        },
        "stages": {
            "easy": {**train, "winner": generated, "loser": generated},
            "hard": train if real else None,
            "normal": None,
            "text_encoder": None,
        },
        "evaluation": {"scorers": [], "second": None},
        "training": {
            "workers": 2,
            "micro_batch": 2,
            "checkpoint_every": 4,
            "log_every": 1,
            "validate_every": 8,
            "validate_pairs": 4,
        },
        "resources": {
            "generate": {"actors": 1, "cpus": 0.3},
            "score": {"actors": 1, "cpus": 0.2},
            "train": {"cpus": 0.3},
            "wait_s": 30,
        },
    }


def small(base: Path, *assignments: str, real: Path | None = None, changes: dict | None = None) -> RunConfig:
    return configure("mini", [overlay(base, real), changes or {}], list(assignments))


# a folder of real images

ODD = ("cmyk.jpg", "deep.png", "alpha.png")  # unusual, but usable
BAD = {  # what becomes of the other files: the reason in rejected.parquet
    "truncated.jpg": "truncated",
    "moving.gif": "animated",
    "dot.png": "too_small",
    "bomb.png": "too_large",
    "missing.jpg": "missing",
}
GOOD = 12


def real_folder(folder: Path, good: int = GOOD, odd: tuple[str, ...] = ODD, bad: tuple[str, ...] = tuple(BAD)) -> Path:
    """Drawn people with captions, among them files of `odd` and `bad`; with `bad` also a row without caption and a line that
    is no JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(good):
        text, pixels = renderer.person(9, i)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": text}))
    people = [Image.fromarray(renderer.person(9, 100 + i)[1]) for i in range(3)]
    people[0].convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.asarray(people[0].convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    people[1].putalpha(128)
    people[1].save(folder / "alpha.png")
    people[0].save(folder / "moving.gif", save_all=True, append_images=people[2:])
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    jpeg = io.BytesIO()
    people[2].save(jpeg, "jpeg")
    (folder / "truncated.jpg").write_bytes(jpeg.getvalue()[: len(jpeg.getvalue()) // 2])
    (folder / "bomb.png").write_bytes(_bomb(60_000))
    for number, name in enumerate((*odd, *bad)):
        lines.append(json.dumps({"file_name": name, "text": renderer.person(9, 200 + number)[0]}))
    if bad:
        lines.insert(3, json.dumps({"file_name": "0.png", "text": "  "}))
        lines.insert(7, '{"file_name": "1.png", "text": ')
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _bomb(side: int) -> bytes:
    """A PNG whose header promises side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


# parts of a run


def tasks_of(config: RunConfig, kind: str | None = None) -> list[Task]:
    return [task for task in plan(config) if kind in (None, task.kind)]


def walk(config: RunConfig, run: Path, pools: Path | None = None, until: str = "pool") -> None:
    """What `execute` does, up to and with the first wave that has a task of the kind or name `until`."""
    from raypref.progress import Progress
    from raypref.remote import pipeline

    run_store, pool_store = Store(str(run)), Store(str(pools or run))
    claim(config, run_store)
    for wave in waves(plan(config)):
        todo = [t for t in wave if read_manifest(pool_store if t.shared else run_store, t.path, t.fields) is None]
        if todo:
            with Progress(wave[0].name, 0, "items") as progress:
                pipeline._run(todo, run_store, pool_store, config, progress)
        if any(until in (task.kind, task.name) for task in wave):
            return
    raise AssertionError(f"the plan has no task {until}")


# files


def files(root: Path, pattern: str = "**/*") -> dict[str, tuple[int, int]]:
    """Of each file its time of modification and inode: a file made again has others."""
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in sorted(root.glob(pattern))
        if path.is_file()
    }


def content(root: Path, *folders: str) -> dict[str, str]:
    """sha256 of each Parquet file and each JSON file (sidecars, manifests) below these folders of a run."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in sorted((root / folder).rglob("*"))
        if path.suffix in (".parquet", ".json")
    }


def same_as(reference: Path, root: Path, *folders: str) -> int:
    """Assert that these folders hold the same files and bytes as in the reference run, which may have more artifacts; how
    many files that are."""
    mine, theirs = content(root, *folders), content(reference, *folders)
    artifacts = {name.rpartition("/")[0] for name in mine}
    expected = {name: value for name, value in theirs.items() if name.rpartition("/")[0] in artifacts}
    assert mine == expected
    return len(mine)


def manifest(root: Path, task: Task) -> dict:
    return json.loads((root / task.path / "manifest.json").read_text())


def rejected(root: Path, task: Task) -> list[dict]:
    return Store(str(root)).read_table(f"{task.path}/rejected.parquet").to_pylist()


def lora(root: Path, stage: str) -> dict[str, tuple]:
    """Of each exported file of a stage the bits of its weights and its metadata (whose order in the file is random)."""
    [folder] = (root / "train").glob(f"*-{stage}-*/lora")
    return {str(path.relative_to(folder)): _weights(path) for path in sorted(folder.rglob("*.safetensors"))}


def _weights(path: Path) -> tuple:
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}, file.metadata()  # noqa: SIM118


# processes


def wait(what: Callable[[], object], seconds: float, describe: str, every: float = 0.005):
    """The first true value of `what()`. Fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := what():
            return value
        time.sleep(every)
    raise AssertionError(f"waited {seconds} s in vain for {describe}")


def workers(folder: str, name: str) -> list[psutil.Process]:
    """Processes of the cluster whose temporary folder this is that run an actor with `name` in its title."""
    found = []
    for process in processes(folder):
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if line.startswith("ray::") and name in line:
                found.append(process)
    return found


def processes(folder: str) -> list[psutil.Process]:
    """Of the cluster with this temporary folder: services, which have its name in their arguments, and their workers."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and f"{folder}/" in " ".join(process.cmdline()):
                found |= {p.pid: p for p in (process, *process.children(recursive=True))}
    return list(found.values())


def end_cluster(folder: str) -> None:
    """End what is left of a test's own cluster."""
    for process in processes(folder):
        with contextlib.suppress(psutil.Error):
            process.kill()


def environment(folder: str, **more: str) -> dict[str, str]:
    """Of a process with a Ray cluster of its own below `folder` (a short path: sockets are in it)."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY")}
    return kept | {
        "RAY_ADDRESS": "local",
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": folder,
        "RAY_object_store_memory": "200000000",
        "PYTHONPATH": str(REPO),
        "OMP_NUM_THREADS": "1",
        **more,
    }


class Driver:
    """A job as a process of its own."""

    def __init__(self, folder: str, log: Path, *arguments: str, job: str = "jobs/hgdpo.py"):
        self.folder, self.log = folder, log
        self.out, self.err = open(f"{log}.out", "wb"), open(f"{log}.err", "wb")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, job, *arguments],
            cwd=REPO,
            env=environment(folder),
            stdout=self.out,
            stderr=self.err,
            start_new_session=True,
        )

    @property
    def stdout(self) -> str:
        return Path(f"{self.log}.out").read_text()

    @property
    def stderr(self) -> str:
        return Path(f"{self.log}.err").read_text()

    def kill_when(self, what: Callable[[], object], seconds: float, describe: str) -> None:
        """SIGKILL as soon as something is so, while the process runs."""

        def ready() -> bool:
            assert self.process.poll() is None, f"ended before {describe}: {self.stderr}"
            return bool(what())

        wait(ready, seconds, describe)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self, seconds: float) -> int:
        try:
            return self.process.wait(seconds)
        finally:
            self.out.close()
            self.err.close()
            if self.process.poll() is None:
                self.process.kill()
            end_cluster(self.folder)
