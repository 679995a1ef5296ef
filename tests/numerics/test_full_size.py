"""Stable Diffusion 1.5 at its real size, with random weights: 5 GB on disk and some minutes on a CPU, so only with --slow."""

import pytest
import torch

from raypref.models import load_pipeline
from tests import pipelines
from tests.conftest import make_config, make_job, read_rows, train


@pytest.mark.slow
def test_one_dpo_step_of_sd15_at_256_px(tmp_path):
    folder = pipelines.sd15(tmp_path / "sd15")
    config = make_config(
        folder, "model.resolution=256", "stages.hard=null", "stages.text_encoder=null", "stages.easy.steps=1",
        "stages.easy.batch_size=1", "stages.easy.optim.warmup=0", "training.micro_batch=1", "training.validate_pairs=1",
        "sampling.steps=1",
    )  # fmt: skip
    job = make_job(tmp_path, config, latent=(4, 32, 32))
    engine = train(job)
    (row,) = read_rows(job)
    assert row["loss"] == pytest.approx(0.6931, abs=1e-3)  # log 2: policy and reference begin equal
    changed = [value for name, value in engine.whole().items() if "lora_B" in name]
    assert len(changed) == 128 and all(
        value.abs().max() > 0 for value in changed
    )  # 16 blocks, 2 attentions, 4 matrices
    pipeline = load_pipeline(config.model, lora=tmp_path / job.path / "lora")
    assert sum(p.numel() for p in pipeline.unet.parameters()) > 859_520_964  # of the model itself
    assert torch.isfinite(engine.denoiser.unet.conv_out.weight).all()
