"""Training of the two open_clip models: "scorer" (preferences) and "clip" (contrastive only, for evaluation)."""

from __future__ import annotations

import dataclasses
import pathlib
import warnings

import open_clip
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from raypref.mini import renderer
from raypref.mini.data import HELD_OUT_SEED, TRAIN_SEED, Pool, corrupt, make_altered_pool, make_pool, recolour
from raypref.mini.networks import clip_config
from raypref.mini.tokens import write_tokenizer
from raypref.mini.training import Progress, optimizer_and_schedule, write_json

PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "size": [64, 64], "interpolation": "bicubic"}
# What people of the miniature world like: utilities, in units of log-odds.
WRONG_ATTRIBUTE, REALISM, VIVID = -1.2, 3.0, 1.2


def create(folder: pathlib.Path, kind: str) -> tuple[nn.Module, open_clip.tokenizer.HFTokenizer]:
    """Write tokenizer and configuration, return a new model and its tokenizer."""
    config = clip_config(kind, write_tokenizer(folder))
    write_json(folder / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": PREPROCESS})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        return model, open_clip.get_tokenizer(f"local-dir:{folder}")


def save(model: nn.Module, folder: pathlib.Path) -> None:
    """open_clip_model.safetensors in half precision."""
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file({k: v.cpu().contiguous().clone() for k, v in state.items()}, folder / "open_clip_model.safetensors")


@dataclasses.dataclass
class Views:
    """Two pools of the same captions: persons that fit, and persons of which 0 to 3 attributes differ."""

    fitting: Pool
    altered: Pool
    wrong_N: torch.Tensor  # number of attributes that differ
    tokens_NL: torch.Tensor
    hard_tokens_NL: torch.Tensor  # captions with one attribute changed: hard negatives

    @classmethod
    def make(cls, seed: int, count: int, tokenizer) -> Views:
        fitting, altered = make_pool(seed, count), make_altered_pool(seed, count)
        wrong = (fitting.labels_NA != altered.labels_NA).sum(1)
        hard = []
        generator = torch.Generator().manual_seed(seed)
        for text in fitting.captions:
            attributes = renderer.parse_caption(text)
            name = list(attributes)[int(torch.randint(len(attributes), (), generator=generator))]
            others = [word for word in renderer.ATTRIBUTES[name] if word != attributes[name]]
            attributes[name] = others[int(torch.randint(len(others), (), generator=generator))]
            hard.append(renderer.caption(attributes))
        return cls(fitting, altered, wrong, tokenizer(fitting.captions), tokenizer(hard))

    def batch(self, pool: Pool, index_B: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """(images [0, 1], their utility without the attributes' part) with random realism, colour and corruption."""
        # A third real, a third of the blends of the base model, a third anything.
        u, free = torch.rand(2, len(index_B), generator=generator)
        realism_B = torch.where(u < 0.33, 1.0, torch.where(u < 0.66, (free * 3).floor() * 0.4, free))
        vivid_B = torch.empty(len(index_B)).uniform_(-1, 1, generator=generator)
        images = corrupt(recolour(pool.images(index_B, realism_B), vivid_B), generator)
        return images, REALISM * realism_B + VIVID * vivid_B


class Trainee(nn.Module):
    """A CLIP with attribute heads on its image features; the heads speed up training and are not saved."""

    def __init__(self, clip: nn.Module, embed_dim: int):
        super().__init__()
        self.clip = clip
        self.heads = nn.ModuleList(nn.Linear(embed_dim, len(words)) for words in renderer.ATTRIBUTES.values())

    def contrastive_loss(self, images_BCHW, tokens_BL, hard_BL, labels_BA) -> torch.Tensor:
        """CLIP's symmetric loss with B hard negative captions more, plus cross-entropy of the attributes."""
        raw = self.clip.encode_image(2 * images_BCHW - 1)
        image = F.normalize(raw, dim=-1)
        text, hard = F.normalize(self.clip.encode_text(torch.cat([tokens_BL, hard_BL])), dim=-1).chunk(2)
        scale = self.clip.logit_scale.exp()
        by_image = scale * image @ text.T
        own_hard = scale * (image * hard).sum(-1, keepdim=True)
        target = torch.arange(len(image), device=image.device)
        loss = F.cross_entropy(torch.cat([by_image, own_hard], 1), target) + F.cross_entropy(by_image.T, target)
        loss = loss + F.softplus(own_hard.squeeze(1) - by_image.diagonal()).mean()
        heads = sum(F.cross_entropy(head(raw), labels_BA[:, i]) for i, head in enumerate(self.heads))
        return loss + 0.3 * heads

    def scores(self, images_BCHW, tokens_BL) -> torch.Tensor:
        """[B] logit scale times cosine."""
        image = self.clip.encode_image(2 * images_BCHW - 1, normalize=True)
        return self.clip.logit_scale.exp() * (image * self.clip.encode_text(tokens_BL, normalize=True)).sum(-1)


def train_clip(out: pathlib.Path, kind: str, seed: int, steps: int, pool_size: int, device: str) -> dict[str, float]:
    """Train the scorer or the evaluation CLIP, save to `out`, return figures on held-out people."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    clip, tokenizer = create(out, kind)
    views = Views.make(TRAIN_SEED, pool_size, tokenizer)
    trainee = Trainee(clip, clip_config(kind, 0)["embed_dim"]).to(device).train()
    optimizer, schedule = optimizer_and_schedule(trainee, 2e-3 if kind == "scorer" else 1.5e-3, steps)
    progress = Progress(kind, steps)
    bradley_terry_from = int(0.5 * steps) if kind == "scorer" else steps
    for step in range(steps):
        index_B = torch.randint(pool_size, (96,), generator=generator)
        images, utility = views.batch(views.fitting, index_B, generator)
        tokens, hard = views.tokens_NL[index_B].to(device), views.hard_tokens_NL[index_B].to(device)
        images = images.to(device)
        loss = trainee.contrastive_loss(images, tokens, hard, views.fitting.labels_NA[index_B].to(device))
        if step >= bradley_terry_from:
            others, other_utility = views.batch(views.altered, index_B, generator)
            gap = utility - other_utility - WRONG_ATTRIBUTE * views.wrong_N[index_B]
            margin = trainee.scores(images, tokens) - trainee.scores(others.to(device), tokens)
            loss = 0.3 * loss + 3 * F.binary_cross_entropy_with_logits(margin, gap.sigmoid().to(device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=4.6)  # CLIP's limit, 100
        progress(step, loss=loss)
    save(clip.eval(), out)
    return clip_figures(trainee.eval(), tokenizer, min(pool_size, 1024), device)


@torch.no_grad()
def clip_figures(trainee: Trainee, tokenizer, count: int, device: str) -> dict[str, float]:
    """Mean score by realism, retrieval and pairwise accuracy on the held-out world."""
    views = Views.make(HELD_OUT_SEED, count, tokenizer)
    index = torch.arange(count)
    tokens, hard = views.tokens_NL.to(device), views.hard_tokens_NL.to(device)
    figures = {"logit_scale": float(trainee.clip.logit_scale.exp())}
    for realism in (1.0, 0.8, 0.4, 0.0):
        images = views.fitting.images(index, torch.full((count,), realism)).to(device)
        figures[f"score_{realism:g}"] = float(trainee.scores(images, tokens).mean())
        if realism in (1.0, 0.4):
            right = trainee.scores(images, tokens) > trainee.scores(images, hard)
            figures[f"right_caption_{realism:g}"] = float(right.float().mean())
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    mine, utility = views.batch(views.fitting, index, generator)
    others, other_utility = views.batch(views.altered, index, generator)
    gap = (utility - other_utility - WRONG_ATTRIBUTE * views.wrong_N).to(device)
    margin = trainee.scores(mine.to(device), tokens) - trainee.scores(others.to(device), tokens)
    figures["pairwise_accuracy"] = float(((margin > 0) == (gap > 0)).float().mean())
    clear = gap.abs() > 1
    figures["pairwise_accuracy_clear"] = float(((margin > 0) == (gap > 0))[clear].float().mean())
    return figures
