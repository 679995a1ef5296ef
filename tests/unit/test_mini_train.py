"""The command that trains the miniature checkpoints runs from nothing and is seeded."""

import json
import subprocess
import sys

import pytest
import torch


def test_smoke_command(tmp_path):
    parts = "judge,vae,decoder,base,scorer,clip"
    command = [sys.executable, "-m", "raypref.mini.train", "--smoke", "--out", str(tmp_path), "--parts", parts]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(json.loads((tmp_path / "figures.json").read_text())) == set(parts.split(","))
    for file in ("pipeline/model_index.json", "judge/model.safetensors", "scorer/open_clip_config.json"):
        assert (tmp_path / file).is_file()


def test_unknown_part_is_refused(capsys):
    from raypref.mini.train import parse

    with pytest.raises(SystemExit):
        parse(["--parts", "vae,nothing"])
    assert "nothing" in capsys.readouterr().err


def test_standardised_latents_leave_images_unchanged():
    from raypref.mini.data import make_pool
    from raypref.mini.networks import build_vae
    from raypref.mini.train_vae import LATENT_STD, standardise_latents

    torch.manual_seed(0)
    vae, pool = build_vae().eval(), make_pool(0, 64)
    images = 2 * pool.images(torch.arange(64), torch.linspace(0, 1, 64)) - 1
    with torch.no_grad():
        before = vae.encode(images).latent_dist
        expected, spread = vae.decode(before.mean).sample, before.std / before.mean.std((0, 2, 3), keepdim=True)
        standardise_latents(vae, pool, "cpu")
        after = vae.encode(images).latent_dist
        torch.testing.assert_close(vae.decode(after.mean).sample, expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(after.mean.std((0, 2, 3)), torch.full((16,), LATENT_STD), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(after.std / LATENT_STD, spread, atol=1e-3, rtol=1e-2)
    assert vae.config.scaling_factor == 1 / LATENT_STD


def test_merges_make_every_word_one_piece():
    from raypref.mini.tokens import learn_merges

    made = {a + b for a, b in learn_merges(("red", "read", "reading"))}
    assert {"red</w>", "read</w>", "reading</w>"} <= made
