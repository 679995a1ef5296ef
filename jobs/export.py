"""Take a finished stage away: as an adapter (kohya, diffusers, peft), a whole pipeline, or the pairs it was trained on.

python jobs/export.py --run-dir runs/demo --as kohya --out demo-kohya
python jobs/export.py --run-dir runs/mine --stage hard --as diffusers --as pairs --license cc-by-4.0 \
  --source-note "Photos: J. Doe, CC BY 4.0" --out mine-hard
"""

import argparse
import sys
import warnings

from raypref import cli
from raypref.artifacts import Store
from raypref.exports import FORMATS, Options, export


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--run-dir", required=True, help="folder or URI (s3://, gs://) of a run")
    options.add_argument("--stage", metavar="NAME", help="default: the last one trained")
    options.add_argument(
        "--as",
        required=True,
        action="append",
        choices=FORMATS,
        dest="formats",
        help="repeatable: a folder each in --out",
    )
    options.add_argument("--out", required=True, metavar="FOLDER", help="a new folder")
    options.add_argument("--base", help="hub id or folder of the base model, if it is no longer where the run had it")
    options.add_argument(
        "--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="of kohya files and pipelines"
    )
    options.add_argument("--license", metavar="ID", help="for the card, such as cc-by-4.0; default: not stated")
    options.add_argument(
        "--source-note",
        action="append",
        default=[],
        metavar="TEXT",
        help="for the card: a source, an attribution; repeatable",
    )
    return options.parse_args()


def main() -> None:
    arguments = parse()
    options = Options(arguments.base, arguments.dtype, arguments.license, tuple(arguments.source_note))
    run = Store(cli.location(arguments.run_dir))
    print(export(run, arguments.formats, arguments.out, arguments.stage, options))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    sys.exit(cli.guarded(main))
