"""Builds the files of a small CLIPTokenizer: every word of the miniature world is one token.

The vocabulary keeps CLIP's scheme (256 bytes, 256 bytes that end a word, merges, start, end), so that any text can be
encoded; unknown words become letters. The end token has the largest id: open_clip pools at the arg-max, and the
padding is the token "!" (id 0), never the end token, so that the arg-max is unique.
"""

from __future__ import annotations

import collections
import itertools
import json
import pathlib

from raypref.mini.renderer import VOCABULARY

CONTEXT = 32  # tokens; a caption has 24 to 28 words and two special tokens
START, END, PAD = "<|startoftext|>", "<|endoftext|>", "!"


def _byte_letters() -> list[str]:
    """GPT-2's printable stand-ins of the 256 bytes, in CLIP's order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(rest))]


def learn_merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Byte-pair merges until every word is one token; the most frequent pair first, ties by spelling."""
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while True:
        pairs = collections.Counter(pair for p in pieces for pair in itertools.pairwise(p))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for p in pieces:
            for i in range(len(p) - 2, -1, -1):
                if (p[i], p[i + 1]) == best:
                    p[i : i + 2] = [best[0] + best[1]]


def write_tokenizer(folder: pathlib.Path) -> int:
    """vocab.json, merges.txt and the configuration of a CLIPTokenizer; returns the number of tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = _byte_letters()
    merges = learn_merges(VOCABULARY)
    tokens = letters + [c + "</w>" for c in letters] + [a + b for a, b in merges] + [START, END]
    assert len(set(tokens)) == len(tokens)
    ids = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False) + "\n")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": PAD}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT, "do_lower_case": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    return len(tokens)
