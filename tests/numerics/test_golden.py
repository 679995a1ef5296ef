"""A 20-step loss curve against a stored one. Rewrite it, when the numbers are meant to change, with

python -m pytest tests/numerics/test_golden.py --update-golden
"""

import json
from pathlib import Path

import pytest

from tests.conftest import make_config, make_job, read_rows, train

GOLDEN = Path(__file__).with_name("golden.json")
STATISTICS = ("stages.easy.objective.statistics={weight: 3.0, match: covariance}",)
NAMES = ("loss", "rewards/margins", "error/winner", "error/loser_reference", "stat_drift", "grad_norm", "lr")


def curve(run, pipeline) -> dict[str, list[float]]:
    settings = ("stages.easy.steps=20", "stages.easy.optim.schedule=cosine", "stages.easy.flip=true")
    job = make_job(run, make_config(pipeline, *settings, *STATISTICS, "training.validate_every=20"))
    train(job)
    rows = read_rows(job)
    return {name: [row[name] for row in rows] for name in NAMES}


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_loss_curve_equals_the_stored_one(tmp_path, request, prediction):
    pipeline = request.getfixturevalue("tiny" if prediction == "v_prediction" else "tiny_epsilon")
    found = curve(tmp_path, pipeline)
    if request.config.getoption("--update-golden"):
        stored = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        GOLDEN.write_text(json.dumps(stored | {prediction: found}, indent=1) + "\n")
        pytest.skip(f"wrote {GOLDEN}")
    golden = json.loads(GOLDEN.read_text())[prediction]
    assert golden.keys() == found.keys()
    for name, values in golden.items():
        # margins are differences of errors of about 1, times beta / 2 = 10
        assert found[name] == pytest.approx(values, rel=1e-4, abs=1e-4 if "margins" in name else 1e-6), name
