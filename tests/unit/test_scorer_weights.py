"""Weight files of scorers: found, read as tensors alone, and refused with a message."""

import pickle

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from raypref import scorers
from raypref.scorers import weights
from tests import checkpoints

KINDS = {
    "hpsv2": lambda file: {"weights": file, "model": "mini:clip"},
    "image_reward": lambda file: {"weights": file, "tokenizer": "none"},
    "aesthetic": lambda file: {"weights": file, "model": "mini:clip"},
    "open_clip": lambda file: {"model": "ViT-S-32", "pretrained": file},
}


class Planted:
    """Unpickled, it writes a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plain", [False, True])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(tmp_path, kind, plain):
    file, target = tmp_path / "weights.pt", tmp_path / "planted"
    if plain:
        file.write_bytes(pickle.dumps(Planted(target), protocol=2))
    else:
        torch.save({"state_dict": {"logit_scale": torch.ones(1)}, "extra": Planted(target)}, file)
    with pytest.raises(ValueError, match=rf"scorer '{kind}' with arguments .*weights"):
        scorers.load(kind, KINDS[kind](str(file)))
    assert not target.exists()
    opened = pickle.loads(file.read_bytes()) if plain else torch.load(file, weights_only=False)["extra"]
    opened.close()
    assert target.exists()  # it would have been


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_files_that_are_no_weights(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}': refused, since it is not a whole file of tensors alone"):
        weights.read(str(tmp_path / name))


def test_a_file_must_hold_weights_by_name(tmp_path):
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list.pt': holds a list, not weights by name"):
        weights.read(str(tmp_path / "list.pt"))


@pytest.mark.parametrize("name", ["no/file.pt", "/no/such/file.pt", "./hps/v2/file.pt", "~/a/b/file.pt", "file.pt", ""])
def test_a_name_that_is_neither_a_file_nor_of_the_hub(name):
    with pytest.raises(ValueError, match=r"there is no such file; give a local file, or owner/name/file of the hub"):
        weights.find(name)


def test_files_of_the_hub_by_owner_name_and_file(tmp_path, monkeypatch):
    """From a cache in the hub's own layout, without a network."""
    folder = tmp_path / "models--xswu--HPSv2"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40) / "sub").mkdir(parents=True)
    file = folder / "snapshots" / ("0" * 40) / "sub" / "hps.pt"
    checkpoints.aesthetic(file, 8)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert weights.find("xswu/HPSv2/sub/hps.pt") == str(file)
    with pytest.raises(ValueError, match=r"scorer 'hpsv2' with arguments .*other\.pt"):
        scorers.load("hpsv2", {"weights": "xswu/HPSv2/other.pt"})


def test_safetensors_hold_the_same_weights(tmp_path):
    state = torch.load(checkpoints.hpsv2(tmp_path / "hps.pt"), weights_only=True)["state_dict"]
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "hps.safetensors")
    made = [
        scorers.load("hpsv2", {"weights": str(tmp_path / name), "model": "mini:clip"})
        for name in ("hps.pt", "hps.safetensors")
    ]
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(*(scorer(image, ["a man"]) for scorer in made))


@pytest.mark.parametrize("kind", ["hpsv2", "image_reward", "aesthetic"])
def test_weights_of_another_model_are_told(tmp_path, kind):
    torch.save({"state_dict": {}, "layers.0.weight": torch.ones(1024, 96)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"scorer '{kind}' .* (missing|another model)"):
        scorers.load(kind, KINDS[kind](str(tmp_path / "w.pt")))


def test_a_head_with_activations_is_told_from_the_linear_one(tmp_path):
    """LAION's ReLU variant numbers its layers otherwise; read as linear it would score wrongly without a word."""
    state = checkpoints.head(96)
    renamed = {2: 3, 4: 6, 6: 9, 7: 11}
    numbers = {
        f"layers.{old}.{kind}": f"layers.{new}.{kind}" for old, new in renamed.items() for kind in ("weight", "bias")
    }
    torch.save({numbers.get(key, key): value for key, value in state.items()}, tmp_path / "relu.pth")
    with pytest.raises(ValueError, match=r"size mismatch for 6\.weight"):
        scorers.load("aesthetic", {"weights": str(tmp_path / "relu.pth"), "model": "mini:clip"})
