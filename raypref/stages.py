"""One row of a curriculum as data: which images win and lose, how they are paired, what is trained on them and how."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PositiveInt, Tag, model_validator


class Strict(BaseModel):
    """Base of every part of the configuration: unknown keys are errors, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Generated(Strict):
    """Images that a model draws from prompts."""

    kind: Literal["generated"] = "generated"
    model: str = Field("start", description="base, a stage's name, or start: the model that this stage starts from")
    prompts: Literal["prompts", "real"] = Field("prompts", description="data.prompts, or the captions of data.real")
    count: int = Field(8, ge=1, description="pool size N, images a prompt")


class Reconstructed(Strict):
    """SDRecon: real images noised to an intermediate timestep and denoised back (HG-DPO, intermediate domains)."""

    kind: Literal["reconstructed"] = "reconstructed"
    model: str = Field("start", description="base, a stage's name, or start")
    strengths: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.4,), min_length=1, description="shares of the schedule to noise to; small is close to the real image"
    )


class Real(Strict):
    """The real images themselves."""

    kind: Literal["real"] = "real"


class Given(Strict):
    """The images of the pairs that the user brings (data.pairs): winners and losers as people chose them."""

    kind: Literal["given"] = "given"


Domain = Annotated[Generated | Reconstructed | Real | Given, Field(discriminator="kind")]


class PairRule(Strict):
    """How one winner and one loser (or several) are picked from the candidates of one prompt."""

    kind: Literal["score"] = "score"
    winner: Literal["best", "random", "top"] = Field("best", description="best score, seeded choice, or the top k")
    loser: Literal["worst", "random", "bottom"] = Field("worst", description="worst, seeded choice, or bottom k")
    k: int = Field(1, ge=1, description="for top and bottom: pairs a prompt (i-th best against i-th worst)")
    ranks: tuple[PositiveInt, PositiveInt] | None = Field(
        None,
        description="in place of winner, loser and k: every two images of a prompt whose ranks by the score differ by this "
        "much, [least, most] (Curriculum-DPO)",
    )
    first: int | None = Field(None, ge=1, description="use only the first n images of each generated pool")
    scorer: str | None = Field(None, description="name of an entry of `scorers`; none needed when both are random")
    min_gap: float = Field(0.0, description="least score gap; ties are always dropped within one domain")


class RewardRule(Strict):
    """RPO: every winner against every loser, with Bradley-Terry probabilities of lambda-harmonic rewards as labels."""

    kind: Literal["reward"] = "reward"
    features: str = Field(description="entry of `scorers` that gives features of image and text side by side")
    lambda_train: float = Field(0.0, ge=0, le=1, description="1 rewards the likeness alone, 0 (paper) the text alone")
    temperature: float = Field(1.0, gt=0, description="of the labels: 1 is the paper's, below 1 is surer")
    first: int | None = Field(None, ge=1, description="use only the first n images of each generated pool")

    @property
    def scorer(self) -> str:
        return self.features


class GivenRule(Strict):
    """The pairs of data.pairs as they are, with their labels; winner and loser of the stage are of the kind given, too."""

    kind: Literal["given"] = "given"

    @property
    def scorer(self) -> None:
        return None


def _rule_tag(value: Any) -> str:
    return (value.get("kind", "score") if isinstance(value, dict) else getattr(value, "kind", "score")) or "score"


Rule = Annotated[
    Annotated[PairRule, Tag("score")] | Annotated[RewardRule, Tag("reward")] | Annotated[GivenRule, Tag("given")],
    Discriminator(_rule_tag),
]


class Statistics(Strict):
    """Statistics matching against colour shift (HG-DPO, L_stat)."""

    weight: float = Field(1.0, ge=0, description="of L_stat beside the preference loss")
    match: Literal["mean", "mean_std", "covariance"] = Field("mean", description="which channel statistics")
    max_gain: float = Field(4.0, gt=0, description="limit of sigma_t/alpha_t in the one-step estimate (epsilon models)")


class DPO(Strict):
    kind: Literal["dpo"] = "dpo"
    beta: float = Field(2500.0, gt=0, description="for errors reduced by the mean over C, H, W; k = beta / 2")
    statistics: Statistics | None = None


class SFT(Strict):
    """Supervised fine-tuning on the winners; the losers are not used."""

    kind: Literal["sft"] = "sft"


class RPO(Strict):
    """Similarity to the winners (the subject's photos) plus the preference loss (RPO, arXiv 2407.12164)."""

    kind: Literal["rpo"] = "rpo"
    beta: float = Field(1.0, gt=0, description="for errors reduced by the mean over C, H, W; k = beta / 2")
    similarity: float = Field(1.0, ge=0, description="weight of the winners' denoising error")
    labels: Literal["sampled", "soft"] = Field("sampled", description="drawn once a pair and epoch, or probabilities")


class DreamBooth(Strict):
    """Denoising of the winners (the subject's photos) and, as prior preservation, of the losers (images of its class)."""

    kind: Literal["dreambooth"] = "dreambooth"
    prior: float = Field(1.0, ge=0, description="weight of the class images' error")


Objective = Annotated[DPO | SFT | RPO | DreamBooth, Field(discriminator="kind")]


class Validation(Strict):
    """Images of `data.validation_prompts` from the weights of the moment, rewarded by lambda_val, choose the checkpoint."""

    features: str = Field(description="entry of `scorers` that gives features of image and text side by side")
    every: int = Field(40, ge=1, description="steps")
    images: int = Field(1, ge=1, description="a prompt")
    select: Annotated[float, Field(ge=0, le=1)] = Field(0.5, description="lambda_val whose best checkpoint is exported")
    lambdas: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), min_length=1, description="followed beside `select`"
    )
    watch: tuple[str, ...] = Field(
        (), description="entries of evaluation.scorers or .likeness, measured on the same images and choosing nothing"
    )
    patience: int | None = Field(
        3, ge=1, description="validations without a new best before the stage ends; none: never"
    )
    stop: Literal["selected", "all"] = Field("selected", description="whose patience counts: `select`, or every lambda")


class Lora(Strict):
    rank: int = Field(8, ge=1)
    alpha: float | None = Field(None, gt=0, description="none: equal to the rank (scale 1)")
    targets: tuple[str, ...] = Field(
        ("to_q", "to_k", "to_v", "to_out.0"), description="suffixes of the module names that get an adapter"
    )


class TextLora(Lora):
    rank: int = Field(64, ge=1)
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "out_proj"), description="suffixes of the module names that get an adapter"
    )


class Loras(Strict):
    """What a stage trains: a LoRA of each module that is named."""

    unet: Lora | None = None
    text_encoder: TextLora | None = None
    text_encoder_2: TextLora | None = Field(None, description="of Stable Diffusion XL")

    @model_validator(mode="after")
    def _something(self) -> Loras:
        if not self.modules:
            raise ValueError("names no module; give unet, text_encoder or text_encoder_2, or null for all of the U-Net")
        return self

    @property
    def modules(self) -> dict[str, Lora]:
        return {name: lora for name in type(self).model_fields if (lora := getattr(self, name)) is not None}


class Optim(Strict):
    """AdamW; every count is in optimizer steps, whatever the number of workers."""

    lr: float = Field(1e-5, gt=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: int = Field(0, ge=0, description="steps of linear warm-up")
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    ema: float | None = Field(None, gt=0, lt=1, description="decay of an average of what is trained, exported instead")


class Stage(Strict):
    """One row of the curriculum: which images win and lose, and what is trained on them for how long."""

    winner: Domain
    loser: Domain | None = Field(None, description="none: for the objective sft, which uses no losers")
    pairs: Rule = PairRule()
    objective: Objective = DPO()
    lora: Loras | None = Field(None, description="none: all weights of the U-Net are trained, from those of the base")
    optim: Optim = Optim()
    steps: int = Field(ge=1, description="optimizer steps")
    batch_size: int = Field(ge=1, description="pairs an optimizer step, over all workers")
    flip: bool = Field(False, description="horizontal flips, winner and loser together")
    start: str = Field("previous", description="previous, base, or an earlier stage: start and reference model")
    validation: Validation | None = None

    @property
    def output(self) -> Literal["lora", "unet"]:
        """What the stage leaves, and the name of the folder that it is in."""
        return "lora" if self.lora else "unet"
