"""What the jobs do between their options and their result. Ray is not imported before there is something to run."""

from __future__ import annotations

from argparse import Namespace

from raypref import cli
from raypref.artifacts import Store
from raypref.config import RunConfig


def train_job(description: str, recipe: str) -> None:
    """A job that runs a recipe: options, the plan or the run (of every subject, where there are several), the result."""
    arguments = cli.parser(description.splitlines()[0], recipe).parse_args()
    if arguments.list_recipes:
        return cli.list_recipes()
    run, pools = stores(arguments)
    configs = cli.load_configs(arguments)
    if arguments.dry_run:
        from raypref.planning import show

        for name, config in configs.items():
            own = store_of(run, name)
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


def stores(arguments: Namespace) -> tuple[Store, Store | None]:
    """The run directory, and the pool store where one is given."""
    if not arguments.run_dir:
        raise ValueError("--run-dir is required: a folder or URI for everything the run makes, such as runs/demo")
    return Store(cli.location(arguments.run_dir)), Store(cli.location(arguments.pools)) if arguments.pools else None


def store_of(run: Store, name: str) -> Store:
    """Where the run of a subject is; the name '' is the only run of the directory."""
    return Store(run.join(f"subjects/{name}")) if name else run


def refuse(failed: dict[str, str], total: int) -> None:
    """Raises ValueError when subjects failed, with the message of each."""
    if failed:
        lines = "\n".join(f"  {name}: {error}" for name, error in failed.items())
        raise ValueError(f"{len(failed)} of {total} subjects failed:\n{lines}")


def _print_subjects(configs: dict[str, RunConfig], run: Store, pools: Store | None) -> None:
    from raypref.remote.subjects import execute_all
    from raypref.report import table

    summary = execute_all(configs, run, pools)
    if summary["mean"]:
        print("\n" + table([{"name": name, "metrics": metrics} for name, metrics in summary["mean"].items()]))
    failed = {name: s["error"] for name, s in summary["subjects"].items() if "error" in s}
    print(f"means over {len(configs) - len(failed)} subjects: {run.join('summary.json')}")
    refuse(failed, len(configs))
