"""Compare two models of finished runs, or evaluate finished runs (or a model as it is) by a protocol. Nothing is trained.

python jobs/evaluate.py --run-dir runs/demo                         # the last stage against its own base model
python jobs/evaluate.py --run-dir runs/demo --against runs/two      # against another run's last stage
python jobs/evaluate.py --run-dir runs/demo --model hard --against-model easy
python jobs/evaluate.py --protocol dreambench --run-dir runs/all
python jobs/evaluate.py --protocol dreambench --recipe dreambench_sd15 --run-dir runs/base \
  --set 'data.subject=dreambooth/dataset/*' --set model.base=FOLDER
"""

import sys
import warnings

from raypref import cli
from raypref.remote.evaluate import evaluate_job


def main() -> None:
    evaluate_job(__doc__)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    sys.exit(cli.guarded(main))
