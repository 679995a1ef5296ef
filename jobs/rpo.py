"""RPO: a subject's photos to a LoRA or a U-Net, the checkpoint chosen by the lambda-harmonic reward of validation images.

python jobs/rpo.py --recipe rpo_mini --run-dir runs/rpo
python jobs/rpo.py --recipe rpo_sd15 --run-dir runs/dog --set data.subject=dreambooth/dataset/dog
python jobs/rpo.py --recipe rpo_sd15 --run-dir runs/all --set 'data.subject=dreambooth/dataset/*'
"""

import sys
import warnings

from raypref import cli
from raypref.remote.job import train_job


def main() -> None:
    train_job(__doc__, "rpo_mini")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    sys.exit(cli.guarded(main))
