"""A subject's photos as the data of a run: captions, and prompts to train, to validate and to evaluate on.

Evaluation prompts are those of DreamBench (arXiv 2208.12242), an object's or a live subject's list; training and validation
prompts are ours and are none of them.
"""

from __future__ import annotations

import re
from pathlib import Path

from raypref.sources.files import IMAGE_SUFFIXES

CLASSES_FILE = "prompts_and_classes.txt"
LIVE = ("dog", "cat")  # classes of DreamBench's live subjects

_BOTH = (
    "in the jungle",
    "in the snow",
    "on the beach",
    "on a cobblestone street",
    "on top of pink fabric",
    "on top of a wooden floor",
    "with a city in the background",
    "with a mountain in the background",
    "with a blue house in the background",
    "on top of a purple rug in a forest",
)
_OBJECT = (
    "with a wheat field in the background",
    "with a tree and autumn leaves in the background",
    "with the Eiffel Tower in the background",
    "floating on top of water",
    "floating in an ocean of milk",
    "on top of green grass with sunflowers around it",
    "on top of a mirror",
    "on top of the sidewalk in a crowded street",
    "on top of a dirt road",
    "on top of a white rug",
)
_LIVE = (
    "wearing a red hat",
    "wearing a santa hat",
    "wearing a rainbow scarf",
    "wearing a black top hat and a monocle",
    "in a chef outfit",
    "in a firefighter outfit",
    "in a police outfit",
    "wearing pink glasses",
    "wearing a yellow shirt",
    "in a purple wizard outfit",
)
_LOOKS = ("red", "purple", "shiny", "wet", "cube shaped")
_TRAIN_BOTH = (
    "in a desert",
    "on a kitchen table",
    "next to a swimming pool",
    "under a cherry tree in blossom",
    "in front of a brick wall",
    "at night under street lamps",
)
_TRAIN = {False: ("on a bookshelf", "in a cardboard box"), True: ("sleeping on a sofa", "wearing a green jacket")}
_VALIDATION = (
    "in a bathtub",
    "in front of a waterfall",
    "on a train seat",
    "with a castle in the background",
    "on a stone bridge",
    "in a field of lavender",
    "in a library",
    "on a pile of leaves",
)


def prompts(noun: str, token: str, live: bool) -> dict[str, tuple[str, ...]]:
    """Prompts of a subject by use: 8 'train', 8 'validation', and DreamBench's 25 'eval'."""
    name = f"{token} {noun}"
    scenes = {
        "train": _TRAIN_BOTH + _TRAIN[live],
        "validation": _VALIDATION,
        "eval": _BOTH + (_LIVE if live else _OBJECT),
    }
    found = {use: tuple(f"a {name} {scene}" for scene in scenes) for use, scenes in scenes.items()}
    return found | {"eval": found["eval"] + tuple(f"a {look} {name}" for look in _LOOKS)}


def expand(tree: dict, changes: list[dict]) -> dict:
    """A configuration's fields with `data.subject` (a folder of photos) and `data.class_noun` turned into sources.

    They take the place of the recipe's; sources that the changes (overlays, assignments) name themselves stay. Raises
    ValueError for a folder without photos or an unknown class.
    """
    data = dict(tree.get("data") or {})
    folder, noun = data.pop("subject", None), data.pop("class_noun", None)
    if folder is None:
        if noun is not None:
            raise ValueError(f"data.class_noun={noun!r} needs data.subject, the folder of the subject's photos")
        return tree
    if any(sign in str(folder) for sign in "*?["):
        raise ValueError(
            f"data.subject={str(folder)!r}: a pattern of folders goes with --set data.subject of jobs/rpo.py and evaluate.py"
        )
    path = Path(str(folder)).expanduser().absolute()
    if not any(file.suffix.lower() in IMAGE_SUFFIXES for file in (path.iterdir() if path.is_dir() else ())):
        raise ValueError(f"data.subject={str(folder)!r}: no such folder with photos ({', '.join(IMAGE_SUFFIXES)})")
    noun = noun or class_of(path)
    token = data.setdefault("token", "sks")
    sets = prompts(noun, token, noun in LIVE)
    stages = (tree.get("stages") or {}).values()
    if any((stage or {}).get("objective", {}).get("kind") == "dreambooth" for stage in stages):
        # its losers are images of the class, which the token must not name
        sets["train"] = (f"a photo of {noun}",) * len(sets["train"])
    photos = {"kind": "folder", "path": str(path), "caption": f"a photo of {token} {noun}"}
    given = {
        "real": photos,
        "eval_real": photos,
        "prompts": _list(sets["train"]),
        "validation_prompts": _list(sets["validation"]),
        "eval_prompts": _list(sets["eval"]),
    }
    named = {key for change in changes if isinstance(change.get("data"), dict) for key in change["data"]}
    return tree | {"data": data | {name: source for name, source in given.items() if name not in named}}


def class_of(folder: Path) -> str:
    """The class of a subject in DreamBench's layout: its line in prompts_and_classes.txt beside the folder."""
    file = folder.parent / CLASSES_FILE
    lines = file.read_text().splitlines() if file.is_file() else []
    for line in lines:
        if match := re.fullmatch(rf"{re.escape(folder.name)}\s*,\s*(.+?)\s*", line):
            return match[1]
    where = f"{file} does not list it" if lines else f"there is no {file}"
    raise ValueError(f"data.subject={str(folder)!r}: {where}; say what it shows, such as --set data.class_noun=dog")


def _list(prompts: tuple[str, ...]) -> dict:
    return {"kind": "list", "prompts": list(prompts)}
