"""Weight files of scorers: found on disk or on the hub, read as tensors alone."""

from __future__ import annotations

import os
import pickle
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


def find(name: str) -> str:
    """Path of a local file, or of `owner/name/file` of the hub, downloaded once. Raises ValueError for anything else."""
    path = os.path.expanduser(name)
    if os.path.isfile(path):
        return path
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if owner in ("", ".", "..", "~") or not file:
        raise ValueError(f"weights {name!r}: there is no such file; give a local file, or owner/name/file of the hub")
    try:
        return hf_hub_download(f"{owner}/{repository}", file)
    except (OSError, ValueError) as error:  # what huggingface_hub raises is one of these
        raise ValueError(
            f"weights {name!r}: cannot be fetched from the hub ({str(error).splitlines()[0]}); give a local file as args.weights"
        ) from error


def read(name: str) -> dict[str, Any]:
    """The content of a .safetensors file or of a PyTorch checkpoint that holds nothing but tensors and plain values.

    Raises ValueError for a file that is neither: whatever else a pickle holds is code of somebody's choice.
    """
    path = find(name)
    try:
        state = load_file(path) if path.endswith(".safetensors") else torch.load(path, "cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, EOFError) as error:
        raise ValueError(
            f"weights {name!r}: refused, since it is not a whole file of tensors alone; give safetensors, or a checkpoint that "
            "torch.load reads with weights_only=True"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"weights {name!r}: holds a {type(state).__name__}, not weights by name")
    return state


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def fill(module: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """The module with all of its weights from `state`, which may hold more. Raises ValueError for a missing one."""
    missing = module.load_state_dict(state, strict=False).missing_keys
    if missing:
        raise ValueError(
            f"{len(missing)} weights of the {type(module).__name__} are missing, such as {missing[0]!r}; "
            "these are weights of another model"
        )
    return module
