"""Where metrics go besides `metrics.jsonl`: TensorBoard, Weights & Biases, MLflow, each through its own library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from raypref.artifacts import digest

Log = Callable[[int, dict[str, float]], None]


def open_tracker(name: str, folder: Path, run: str, config: dict, start: int) -> tuple[Log, Callable[[], None]]:
    """(log, close) of one tracker. `run`: path of the training artifact, unlike that of any other run; `start`: the step
    that a resumed run goes on from; later entries are purged.

    Raises ValueError when its library is not installed.
    """
    try:
        return {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}[name](folder, run, config, start)
    except ImportError as error:
        raise ValueError(
            f"training.trackers: {name} is not installed ({error}); pip install -e '.[tracking]' or "
            "remove it from the list"
        ) from error


def _tensorboard(folder: Path, run: str, config: dict, start: int):
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start or None)

    def log(step: int, row: dict[str, float]) -> None:
        for key, value in row.items():
            writer.add_scalar(key, value, step)

    return log, writer.close


def _wandb(folder: Path, run: str, config: dict, start: int):
    import wandb

    session = wandb.init(
        project="raypref", name=_short(run), id=digest(run), resume="allow", config=config, dir=str(folder)
    )
    return lambda step, row: session.log(row, step=step), session.finish


def _mlflow(folder: Path, run: str, config: dict, start: int):
    import mlflow

    tag = f"tags.raypref = '{digest(run)}'"
    earlier = mlflow.search_runs(filter_string=tag, output_format="list") if start else []
    resumed = earlier[0].info.run_id if earlier else None
    mlflow.start_run(resumed, run_name=_short(run), tags={"raypref": digest(run)})
    mlflow.log_dict(config, "config.json")
    return lambda step, row: mlflow.log_metrics(
        {k.replace("/", "."): v for k, v in row.items()}, step=step
    ), mlflow.end_run


def _short(run: str) -> str:
    """Run directory and training artifact: the last three parts of the path."""
    return "/".join(run.split("/")[-3:])
