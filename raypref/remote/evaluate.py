"""Evaluates finished runs, or a model as it is, by a protocol; nothing is trained, and a run's own files stay as they are.

Without a protocol, compares two models from what their runs have stored (compare.py).
"""

from __future__ import annotations

from argparse import Namespace
from functools import reduce

from raypref import cli, dreambench, overlays, recipes
from raypref.artifacts import Store
from raypref.config import RunConfig, build
from raypref.remote import compare
from raypref.remote.job import refuse, store_of, stores
from raypref.rundir import check, claim


def evaluate_job(description: str) -> None:
    """Options; the plan, or the table of what was found in the run directory."""
    options = cli.parser(description.splitlines()[0], None)
    options.add_argument("--protocol", choices=["dreambench"], help="evaluate by it; without: compare finished models")
    compare.add_options(options)
    arguments = options.parse_args()
    if arguments.list_recipes:
        return cli.list_recipes()
    compare.check_options(arguments)
    if not arguments.protocol:
        return compare.compare_job(arguments)
    run, pools = stores(arguments)
    configs = (_as_it_is if arguments.recipe else _of_runs)(arguments, run)
    if arguments.dry_run:
        return _show(configs, run, pools)
    result = evaluate_all(configs, run, pools)
    print(f"\n{dreambench.overview(result)}\n\nevery subject: {run.join('dreambench.md')}")
    refuse(result["failed"], len(configs))


def evaluate_all(configs: dict[str, RunConfig], run: Store, pools: Store | None = None) -> dict:
    """Evaluate every subject; writes dreambench.json and .md and returns the content of the former.

    A subject that fails is named there and stops no other. Raises ValueError when there is none that does not.
    """
    if list(configs) == [""]:
        results = {"": evaluate(configs[""], run, pools or run)}
    else:
        from raypref.remote.subjects import each

        results = each(evaluate, configs, run, pools)
    failed = {name: result["error"] for name, result in results.items() if "error" in result}
    if len(failed) == len(configs):
        refuse(failed, len(configs))
    rows = [row for result in results.values() for row in result.get("rows", ())]
    result = dreambench.summarize(rows, list(configs.values()), failed)
    run.write_json("dreambench.json", result)
    run.write("dreambench.md", dreambench.markdown(result).encode())
    return result


def evaluate(config: RunConfig, run: Store, pools: Store) -> dict:
    """{"rows": [...]} of one run. `config`: of the evaluation; the run's own says what was trained."""
    from raypref.remote.pipeline import make

    tasks = _tasks(config, run, pools)
    for _ in make(config, tasks, run, pools):
        pass
    return {"rows": dreambench.rows(tasks, run.uri.partition("?")[0].rstrip("/").rpartition("/")[2], run, pools)}


def _tasks(config: RunConfig, run: Store, pools: Store) -> list:
    own = build(run.read_json("config.json")) if run.exists("config.json") else config
    return dreambench.tasks(config, own, run, pools)


def _of_runs(arguments: Namespace, run: Store) -> dict[str, RunConfig]:
    """The configurations by which the runs in a directory are evaluated: theirs, the protocol, what the options change."""
    files = _overlays(arguments)
    dreambench.check_changes([*files, *map(overlays.assignment, arguments.assignments)])
    names = [""] if run.exists("config.json") else run.names("subjects")
    found = {name: own for name in names if (own := store_of(run, name)).exists("config.json")}
    if not found:
        raise ValueError(
            f"--run-dir {run.uri}: holds no run (config.json, or subjects/*/config.json); train one with jobs/rpo.py, or give "
            "--recipe dreambench_sd15 to evaluate a model as it is"
        )
    configs = {}
    for name, own in found.items():
        tree = dreambench.laid_over(own.read_json("config.json")) | {"stages": {}}
        configs[name] = cli.absolute(build(tree, files, arguments.assignments))
    return configs


def _overlays(arguments: Namespace) -> list[dict]:
    """What the files of --config change. Raises ValueError for a file that is the whole of a run."""
    whole, files = cli.read_overlays(arguments)
    if isinstance(whole, dict):
        raise ValueError("--config: the whole of a run is no change of an evaluation; give its folder as --run-dir")
    return files


def _as_it_is(arguments: Namespace, run: Store) -> dict[str, RunConfig]:
    """The configurations of runs without stages; their directories are theirs from now on."""
    changes = [*_overlays(arguments), *map(overlays.assignment, arguments.assignments)]
    tree = dreambench.laid_over(recipes.fields(arguments.recipe))
    if stages := reduce(overlays.merge, changes, tree).get("stages"):
        raise ValueError(
            f"--recipe {arguments.recipe}: trains {', '.join(stages)}; run it with jobs/rpo.py, then evaluate its --run-dir "
            "without --recipe"
        )
    configs = cli.load_configs(Namespace(**vars(arguments) | {"recipe": tree}), untrained=True)
    for name, config in configs.items():
        (check if arguments.dry_run else claim)(config, store_of(run, name))
    return configs


def _show(configs: dict[str, RunConfig], run: Store, pools: Store | None) -> None:
    from raypref.planning import listing

    failed = {}
    for name, config in configs.items():
        own = store_of(run, name)
        try:
            tasks = _tasks(config, own, pools or own)
            print(f"{name}\n{listing(tasks, config, own, pools or own)}".strip())
        except ValueError as error:
            if not name:
                raise
            failed[name] = str(error)
    refuse(failed, len(configs))
