"""What a user takes away from a finished run: copies, whole pipelines, model cards, and what is refused."""

import filecmp
import runpy
import shutil
import sys

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from raypref.artifacts import Store
from raypref.curriculum import plan
from raypref.exports import Options, cards, export
from raypref.models import LORA_FILE
from tests.runs import config_of, write_run
from tests.unit.test_exports_kohya import drawn
from tests.unit.test_imports import ROOT, imported

JOB = ROOT.parent / "jobs" / "export.py"
OPTIONS = Options(license="openrail", source_notes=("Photos: J. Doe, CC BY 4.0",))


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny) -> Store:
    """Stages easy and text_encoder are trained, hard is not."""
    return write_run(tmp_path_factory.mktemp("runs") / "one", config_of(tiny), ("easy", "text_encoder"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny) -> Store:
    """One stage, which has trained all of the U-Net."""
    config = config_of(tiny, "stages.easy.lora=null", "stages.hard=null", "stages.text_encoder=null")
    return write_run(tmp_path_factory.mktemp("runs") / "whole", config, ("easy",))


def path_of(run: Store, tiny, stage: str, *assignments: str):
    return run.local / next(
        t.path for t in plan(config_of(tiny, *assignments)) if t.kind == "train" and t.model == stage
    )


def front(folder) -> dict:
    """The card's front matter as the hub's own reader sees it."""
    return ModelCard.load(folder / "README.md").data.to_dict()


def test_copies_are_what_the_run_holds(run, tiny, tmp_path):
    out = export(run, ["diffusers", "peft"], tmp_path / "out")
    source = path_of(run, tiny, "text_encoder") / "lora"
    assert filecmp.cmp(out / "diffusers" / LORA_FILE, source / LORA_FILE, shallow=False)
    for module in ("unet", "text_encoder"):
        same = filecmp.dircmp(source / "peft" / module, out / "peft" / module)
        assert len(same.same_files) == 2 and not (same.left_only or same.right_only or same.diff_files)
    assert sorted(p.name for p in (out / "diffusers").iterdir()) == ["README.md", "grid.png", LORA_FILE]
    PeftModel.from_pretrained(UNet2DConditionModel.from_pretrained(tiny / "unet"), out / "peft" / "unet")


def test_a_kohya_file_draws_as_the_adapter_does(run, tiny, tmp_path):
    out = export(run, ["kohya"], tmp_path / "out", options=OPTIONS)
    pipes = [StableDiffusionPipeline.from_pretrained(tiny, safety_checker=None) for _ in range(2)]
    pipes[0].load_lora_weights(path_of(run, tiny, "text_encoder") / "lora")
    pipes[1].load_lora_weights(out, weight_name="test_text_encoder.safetensors")
    torch.testing.assert_close(drawn(pipes[1]), drawn(pipes[0]), atol=1e-5, rtol=1e-5)
    with safe_open(out / "test_text_encoder.safetensors", "pt") as file:
        told = file.metadata()
    assert (told["ss_base_model_version"], told["modelspec.license"]) == ("sd_v1_v", "openrail")
    assert told["ss_output_name"] == "test_text_encoder" and str(tiny.parent) not in str(told)


def test_a_pipeline_draws_as_the_adapter_does(run, tiny, tmp_path):
    out = export(run, ["pipeline"], tmp_path / "out")
    pipe = StableDiffusionPipeline.from_pretrained(tiny, safety_checker=None)
    base = drawn(pipe)
    pipe.load_lora_weights(path_of(run, tiny, "text_encoder") / "lora")
    merged = StableDiffusionPipeline.from_pretrained(out)
    assert (drawn(pipe) - base).abs().max() > 0.05
    torch.testing.assert_close(drawn(merged), drawn(pipe), atol=1e-4, rtol=1e-4)
    assert not [p for p in out.rglob("*") if p.suffix in (".bin", ".pt", ".pth")]
    assert not [key for file in out.rglob("*.safetensors") for key in load_file(file) if "lora" in key]


def test_a_merged_text_encoder_keeps_the_names_of_its_weights(run, tiny, tmp_path):
    """Those of the hub's checkpoints begin with `text_model.`, which Transformers 5 calls otherwise once they are loaded."""
    base = shutil.copytree(tiny, tmp_path / "base")
    file = base / "text_encoder" / "model.safetensors"
    save_file({f"text_model.{name}": value for name, value in load_file(file).items()}, file, {"format": "pt"})
    out = export(run, ["pipeline"], tmp_path / "out", options=Options(base=str(base)))
    before, after = load_file(file), load_file(out / "text_encoder" / "model.safetensors")
    assert after.keys() == before.keys()
    layer = "text_model.encoder.layers.0.self_attn.q_proj.weight"
    assert (after[layer] - before[layer]).abs().max() > 0.01


def test_a_trained_unet_is_taken_away_alone_or_in_its_pipeline(whole, tiny, tmp_path):
    out = export(whole, ["diffusers", "pipeline"], tmp_path / "out")
    unet = UNet2DConditionModel.from_pretrained(out / "diffusers")
    pipe = StableDiffusionPipeline.from_pretrained(tiny, safety_checker=None)
    base = drawn(pipe)
    pipe.unet = unet
    assert (drawn(pipe) - base).abs().max() > 0.01
    torch.testing.assert_close(drawn(StableDiffusionPipeline.from_pretrained(out / "pipeline")), drawn(pipe))
    with pytest.raises(
        ValueError, match="trained all of the U-Net, which has no such form; use --as diffusers or pipeline"
    ):
        export(whole, ["kohya"], tmp_path / "kohya")
    assert not list(tmp_path.glob("*kohya*"))


def test_half_precision(run, tmp_path):
    out = export(run, ["kohya", "pipeline"], tmp_path / "out", "easy", Options(dtype="float16"))
    tensors = load_file(out / "kohya" / "test_easy.safetensors")
    assert {t.dtype for name, t in tensors.items() if not name.endswith("alpha")} == {torch.float16}
    assert not [name for name in tensors if name.startswith("lora_te")]  # the stage easy has the U-Net's alone
    unet = load_file(out / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {t.dtype for t in unet.values()} == {torch.float16}


def test_the_card_of_a_model(run, tiny, tmp_path):
    out = export(run, ["diffusers"], tmp_path / "out", options=OPTIONS)
    text, data = (out / "README.md").read_text(), front(out)
    assert (data["license"], data["library_name"]) == ("openrail", "diffusers")
    assert {"lora", "dpo", "text-to-image"} <= set(data["tags"])
    assert "base_model" not in data  # a folder is no link
    assert str(tiny) not in text and f"`{tiny.name}`" in text
    assert "![a row is a model, a column a prompt and a seed](grid.png)" in text
    assert (out / "grid.png").read_bytes() == run.read("grid.png")
    assert "Photos: J. Doe, CC BY 4.0" in text and "Preference" in text
    for name, value in (("base", "11.00"), ("easy", "12.00"), ("text_encoder", "13.00")):
        assert any(line.split()[:2] == [name, value] for line in text.splitlines())
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert list(settings) == ["easy", "hard", "text_encoder"] and settings["easy"]["lora"]["unet"]["alpha"] == 12
    assert text.rstrip().endswith("## Licence\n\nopenrail")


def test_a_card_says_nothing_that_nobody_said(run, tmp_path):
    (out := export(run, ["diffusers"], tmp_path / "out", "easy")).relative_to(tmp_path)
    assert "license" not in front(out)
    assert (out / "README.md").read_text().rstrip().endswith("## Licence\n\nNot stated.")
    assert "text_encoder" not in (out / "README.md").read_text()  # a later stage is not in the weights


def test_a_base_model_on_the_hub_is_linked(run):
    base = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert cards.hub_link(base, "adapter") == {"base_model": base, "base_model_relation": "adapter"}
    assert [cards.hub_link(name, "adapter") for name in ("mini:pipeline", "/weights/sd15", "sd15")] == [{}, {}, {}]
    assert [cards.public_name(n) for n in (base, "/home/a/sd15/", "s3://b/photos")] == [base, "sd15", "s3://b/photos"]


@pytest.mark.parametrize("stage", ["hard", "nonsense"])
def test_a_stage_that_is_not_there(run, tmp_path, stage):
    with pytest.raises(ValueError, match=r"easy \(trained\), hard \(not trained\), text_encoder \(trained\)"):
        export(run, ["diffusers"], tmp_path / "out", stage)
    assert not list(tmp_path.iterdir())


def test_folders_that_hold_something_or_no_run(run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="full: exists and is not an empty folder"):
        export(run, ["diffusers"], tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["file"]
    with pytest.raises(ValueError, match="must be a local folder"):
        export(run, ["diffusers"], "s3://bucket/out")
    with pytest.raises(ValueError, match=r"holds no run \(config.json\)"):
        export(Store(str(tmp_path / "full")), ["diffusers"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert export(run, ["diffusers"], tmp_path / "empty").joinpath("README.md").exists()


def test_nothing_is_left_behind_by_an_export_that_fails(run, tmp_path):
    with pytest.raises(ValueError, match=r"cannot be read .* give --base"):
        export(run, ["diffusers", "kohya"], tmp_path / "out", options=Options(base=str(tmp_path / "gone")))
    assert not list(tmp_path.iterdir())


def test_the_base_model_may_have_moved(run, tiny, tmp_path):
    (tmp_path / "moved").symlink_to(tiny)
    out = export(run, ["kohya"], tmp_path / "out", options=Options(base=str(tmp_path / "moved")))
    assert "`moved`" in (out / "README.md").read_text()


def test_the_job(run, tmp_path, monkeypatch, capsys):
    command = [
        "export.py",
        "--run-dir",
        str(run.local),
        "--stage",
        "easy",
        "--as",
        "diffusers",
        "--out",
        str(tmp_path / "out"),
    ]
    monkeypatch.setattr(sys, "argv", command)
    for status, stream in ((0, "out"), (1, "err")):
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(JOB), run_name="__main__")
        assert end.value.code == status
        assert str(tmp_path / "out") in getattr(capsys.readouterr(), stream)
    assert (tmp_path / "out" / LORA_FILE).exists()
    assert "ray" not in imported(JOB)
