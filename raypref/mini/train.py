"""Trains all checkpoints of the miniature world from nothing: python -m raypref.mini.train.

Parts, in this order: judge, vae (uses the judge's early features), base (text encoder and U-Net, uses the vae), scorer,
clip. The part "decoder" runs only if named: it trains the decoder of a finished vae further, at the same latents, so
that nothing else must be trained again. `--smoke` runs the parts for a few steps. Figures on held-out people go to
OUT/figures.json.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time

import torch

from raypref.mini.train_base import train_base
from raypref.mini.train_clip import train_clip
from raypref.mini.train_judge import train_judge
from raypref.mini.train_vae import train_decoder, train_vae
from raypref.mini.training import write_json

WEIGHTS = pathlib.Path(__file__).parent / "weights"
STEPS = {"judge": 1200, "vae": 2600, "decoder": 3000, "base": 3500, "scorer": 900, "clip": 700}
POOL_SIZE = 8_000
SMOKE_STEPS, SMOKE_POOL = 2, 96


def train_part(part: str, out: pathlib.Path, seed: int, steps: int, pool_size: int, device: str) -> dict[str, float]:
    """Train one part below `out`; returns its figures."""
    if part == "judge":
        return train_judge(out / "judge", seed + 10, steps, pool_size, device)
    if part == "vae":
        return train_vae(out / "pipeline" / "vae", seed, steps, pool_size, device, judge_path=out / "judge")
    if part == "decoder":
        return train_decoder(out / "pipeline" / "vae", seed + 2, steps, pool_size, device, out / "judge")
    if part == "base":
        return train_base(out / "pipeline", out / "judge", seed + 1, steps, pool_size, device)
    return train_clip(out / part, part, seed + {"scorer": 20, "clip": 30}[part], steps, pool_size, device)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=WEIGHTS, help="folder of the weights")
    parser.add_argument("--parts", default="judge,vae,base,scorer,clip", help="comma-separated, run in the given order")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of every part chosen; default " + json.dumps(STEPS))
    parser.add_argument("--pool-size", type=int, default=POOL_SIZE, help="rendered training people")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--smoke", action="store_true", help="the parts for two steps, to see that they run")
    args = parser.parse_args(argv)
    args.parts = args.parts.split(",")
    unknown = set(args.parts) - set(STEPS)
    if unknown:
        parser.error(f"--parts: unknown {sorted(unknown)}, choose from {sorted(STEPS)}")
    if args.smoke:
        args.steps, args.pool_size = SMOKE_STEPS, SMOKE_POOL
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    path = args.out / "figures.json"
    for part in args.parts:
        steps = args.steps or STEPS[part]
        start = time.monotonic()
        figures = train_part(part, args.out, args.seed, steps, args.pool_size, args.device)
        record = {"seed": args.seed, "steps": steps, "pool_size": args.pool_size, "seconds": time.monotonic() - start}
        known = json.loads(path.read_text()) if path.is_file() else {}
        known[part] = {k: round(v, 4) for k, v in {**record, **figures}.items()}
        write_json(path, known)
        print(part, json.dumps(known[part]), flush=True)


if __name__ == "__main__":
    main()
