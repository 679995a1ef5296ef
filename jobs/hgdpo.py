"""HG-DPO: pools, pairs, the curriculum easy -> normal -> hard -> text encoder, evaluation, a LoRA and a report.

python jobs/hgdpo.py --recipe mini --run-dir runs/demo
ray job submit --working-dir . -- python jobs/hgdpo.py --recipe hgdpo_sd15 --config mine.yaml --run-dir s3://bucket/run
"""

import sys
import warnings

from raypref import cli
from raypref.remote.job import train_job


def main() -> None:
    train_job(__doc__, "mini")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    sys.exit(cli.guarded(main))
