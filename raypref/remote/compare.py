"""Compares two models of finished runs from what these have stored; needs neither Ray nor a GPU."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from raypref import cli, comparison
from raypref.artifacts import Store
from raypref.remote.job import stores


def add_options(options: ArgumentParser) -> None:
    options.add_argument("--against", metavar="DIR", help="another finished run; without: the run's own base model")
    options.add_argument("--model", metavar="NAME", help="a stage, or base; without: the last stage")
    options.add_argument("--against-model", metavar="NAME", help="of --against, or of the run itself")
    options.add_argument("--out", metavar="DIR", help="where the comparison goes; without: comparisons/ in --run-dir")


def check_options(arguments: Namespace) -> None:
    """Raises ValueError for an option that the kind of evaluation does not take."""
    if arguments.protocol:
        foreign, why = ("against", "model", "against_model", "out"), "compares finished models, without --protocol"
    else:
        foreign, why = (
            ("recipe", "config", "assignments"),
            "is for an evaluation by a protocol: add --protocol dreambench",
        )
    for name in foreign:
        if getattr(arguments, name):
            raise ValueError(f"--{'set' if name == 'assignments' else name.replace('_', '-')}: {why}")


def compare_job(arguments: Namespace) -> None:
    """Writes comparison.html and comparison.json, and prints the table; with --dry-run, only whether the two compare."""
    run, pools = stores(arguments)
    other = Store(cli.location(arguments.against)) if arguments.against else run
    a = comparison.find(run, pools, arguments.model, "--model")
    b = comparison.find(
        other, pools, arguments.against_model or (None if arguments.against else "base"), "--against-model"
    )
    if (a.run, a.name) == (b.run, b.name):
        options = "--model, --against-model or --against" if a.config.stages else "--against"
        raise ValueError(f"{a.label} would be compared with itself; give {options}")
    against = b.name if b.run == a.run else b.label.replace("/", "-").replace(" ", "")
    out = Store(cli.location(arguments.out) if arguments.out else run.join(f"comparisons/{a.name}-against-{against}"))
    if arguments.dry_run:
        comparison.check(a, b)
        return print(f"{a.label} and {b.label} compare; the result would be in {out.uri}")
    from raypref import comparison_page

    result = comparison.compare(a, b)
    kind = a.config.scorers[features].kind if (features := a.config.evaluation.features) else None
    out.write("comparison.html", comparison_page.render(result, comparison.samples(a, b), kind).encode())
    out.write_json("comparison.json", result)  # last: it says that the page is there
    print(f"A: {a.label}\nB: {b.label}\n\n{comparison_page.table(result)}\n\npage: {out.join('comparison.html')}")
