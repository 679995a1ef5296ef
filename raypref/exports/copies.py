"""What a stage has left in its run, as it is: Diffusers' form and PEFT's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from raypref.exports import cards
from raypref.models import LORA_FILE

if TYPE_CHECKING:
    from raypref.exports import Options
    from raypref.exports.finished import Finished


def diffusers(finished: Finished, folder: Path, options: Options) -> None:
    """For `pipe.load_lora_weights`; where all of the U-Net was trained, for `UNet2DConditionModel.from_pretrained`."""
    kind = finished.stage.output
    with finished.weights(kind) as source:
        if kind == "lora":
            shutil.copyfile(source / LORA_FILE, folder / LORA_FILE)
        else:
            shutil.copytree(source, folder, dirs_exist_ok=True)
    cards.write_model_card(finished, folder, options, "diffusers")


def peft(finished: Finished, folder: Path, options: Options) -> None:
    """A folder a module, each for `PeftModel.from_pretrained`."""
    with finished.weights("lora") as source:
        shutil.copytree(source / "peft", folder, dirs_exist_ok=True)
    cards.write_model_card(finished, folder, options, "peft")
