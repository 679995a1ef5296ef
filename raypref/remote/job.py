"""What the jobs do between their options and their result. Ray is not imported before there is something to run."""

from __future__ import annotations

from raypref import cli
from raypref.artifacts import Store
from raypref.config import RunConfig


def train_job(description: str, recipe: str) -> None:
    """A job that runs a recipe: options, the plan or the run (of every subject, where there are several), the result."""
    arguments = cli.parser(description.splitlines()[0], recipe).parse_args()
    if arguments.list_recipes:
        return cli.list_recipes()
    if not arguments.run_dir:
        raise ValueError("--run-dir is required: a folder or URI for everything the run makes, such as runs/demo")
    configs = cli.load_configs(arguments)
    run = Store(cli.location(arguments.run_dir))
    pools = Store(cli.location(arguments.pools)) if arguments.pools else None
    if arguments.dry_run:
        from raypref.planning import show

        for name, config in configs.items():
            own = Store(run.join(f"subjects/{name}")) if name else run
            print(f"{name}\n{show(config, own, pools or own)}".strip())
        return
    if list(configs) != [""]:
        return _print_subjects(configs, run, pools)
    from raypref.remote import pipeline
    from raypref.report import table
    from raypref.reporting import choices

    summary = pipeline.execute(configs[""], run, pools or run)
    print("\n" + table(summary["stages"]))
    for stage, words in choices(summary).items():
        print(f"{stage}: {words}")
    print(f"report: {run.join('report.html')}")
    for name, key in (("LoRA", "loras"), ("U-Net", "unets")):
        for path in list(summary.get(key, {}).values())[-1:]:
            print(f"{name}: {run.join(path)}")


def _print_subjects(configs: dict[str, RunConfig], run: Store, pools: Store | None) -> None:
    from raypref.remote.subjects import execute_all
    from raypref.report import table

    summary = execute_all(configs, run, pools)
    if summary["mean"]:
        print("\n" + table([{"name": name, "metrics": metrics} for name, metrics in summary["mean"].items()]))
    failed = {name: s["error"] for name, s in summary["subjects"].items() if "error" in s}
    print(f"means over {len(configs) - len(failed)} subjects: {run.join('summary.json')}")
    if failed:
        lines = "\n".join(f"  {name}: {error}" for name, error in failed.items())
        raise ValueError(f"{len(failed)} of {len(configs)} subjects failed:\n{lines}")
