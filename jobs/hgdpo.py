"""HG-DPO: pools, pairs, the curriculum easy -> normal -> hard -> text encoder, evaluation, a LoRA and a report.

python jobs/hgdpo.py --recipe mini --run-dir runs/demo
ray job submit --working-dir . -- python jobs/hgdpo.py --recipe hgdpo_sd15 --config mine.yaml --run-dir s3://bucket/run
"""

import sys
import warnings

from raypref import cli


def main() -> None:
    arguments = cli.parser(__doc__.splitlines()[0], "mini").parse_args()
    if arguments.list_recipes:
        return cli.list_recipes()
    if not arguments.run_dir:
        raise ValueError("--run-dir is required: a folder or URI for everything the run makes, such as runs/demo")
    config = cli.load_config(arguments)

    from raypref.artifacts import Store
    from raypref.report import table

    run = Store(cli.location(arguments.run_dir))
    pools = Store(cli.location(arguments.pools or arguments.run_dir))
    if arguments.dry_run:
        from raypref.planning import show

        return print(show(config, run, pools))

    from raypref.remote import pipeline

    summary = pipeline.execute(config, run, pools)
    print("\n" + table(summary["stages"]))
    print(f"report: {run.uri}/report.html\nlast adapter: {run.uri}/{list(summary['loras'].values())[-1]}")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    sys.exit(cli.guarded(main))
