"""Every setting of a run and of sampling, and what a checkpoint says of itself."""

from dataclasses import dataclass
from typing import ClassVar

from ..settings import Settings, setting
from .data import PARTS as PARTS
from .data import DataConfig as DataConfig
from .data import ImageShape as ImageShape
from .data import parse_size as parse_size

MOVED = "where the codec lies that the model was trained with; default: where it lay then"  # a flag of many commands


@dataclass(frozen=True)
class BridgeConfig(Settings):
    """The diffusion bridge (docs/maths.md)."""

    schedule: str = setting("ve", "noise schedule")
    sigma_min: float = setting(0.002, "VE: smallest time", above=0)
    sigma_max: float = setting(80.0, "VE: largest time T, the standard deviation of the noise", above=0)
    beta_d: float = setting(2.0, "VP: slope of the noise rate", above=0)
    beta_min: float = setting(0.1, "VP, I2SB: noise rate at t = 0", above=0)
    beta_max: float = setting(0.3, "I2SB: where its noise rate would be at t = 1, if it did not fall from 1/2", above=0)
    gamma_max: float = setting(0.125, "linear: largest standard deviation of the noise", above=0)
    ot: bool = setting(False, "I2SB: without noise on the path, its deterministic (OT) variant")
    source_noise: float = setting(0.0, "standard deviation of noise on the source end of the path, for diversity")
    sigma_data: float = setting(0.5, "standard deviation of targets and sources", above=0)
    cov_xy: float = setting(0.0, "covariance of target and source, pixel by pixel", signed=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"--sigma_min {self.sigma_min} must be below --sigma_max {self.sigma_max}")
        if self.ot and self.schedule != "i2sb":
            raise ValueError(f"--ot is a variant of schedule i2sb, found {self.schedule}: leave it out")
        if abs(self.cov_xy) >= self.sigma_data**2:
            raise ValueError(f"--cov_xy {self.cov_xy} must be smaller than sigma_data² = {self.sigma_data**2:g}")


@dataclass(frozen=True)
class ModelConfig(Settings):
    """The U-Net and its symmetry. Channels and size of the images come from the data."""

    backbone: str = setting("adm", "blocks of the U-Net: adm, as in the papers; edm2, which keeps magnitudes")
    model_channels: int = setting(128, "channels at full resolution", above=0)
    channel_mult: tuple[int, ...] = setting((), "multiplier a level, e.g. 1,2,3,4; empty: by image size", above=0)
    num_res_blocks: int = setting(2, "residual blocks a level", above=0)
    attention_resolutions: tuple[int, ...] = setting((32, 16, 8), "image heights at which attention is used")
    num_head_channels: int = setting(64, "channels an attention head", above=0)
    dropout: float = setting(0.1, "dropout rate", below=1)
    codec: str = setting(
        "pixels", "autoencoder in front of the bridge: the run that trained one, or an AutoencoderKL; pixels: none",
        changes="nothing",
    )  # fmt: skip
    condition: str = setting(
        "source", "what the network sees beside the state: the source, or none", choices=("source", "none")
    )
    layers: str = setting("plain", "how layers know the group; tied: every kernel is averaged over it")
    group: str = setting("none", "symmetry group of the network")


@dataclass(frozen=True)
class CodecConfig(Settings):
    """The convolutional autoencoder of our own and its symmetry. The channels of the images come from the data."""

    factor: int = setting(8, "pixels along each axis that a latent pixel stands for: 4 or 8")
    latent_channels: int = setting(4, "channels of the latents, from 4 to 16", above=3, below=17)
    model_channels: int = setting(64, "channels at full resolution", above=0)
    channel_mult: tuple[int, ...] = setting((), "multiplier a level, empty: 1,2,4 for factor 4, 1,2,4,4 for 8", above=0)
    num_res_blocks: int = setting(2, "residual blocks a level", above=0)
    layers: str = setting("regular", "how layers know the group; tied: every kernel is averaged over it")
    group: str = setting("D4", "symmetry group of encoder and decoder")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor not in (4, 8):
            raise ValueError(f"--factor must be 4 or 8, found {self.factor}")
        if len(self.multipliers) != self.factor.bit_length():
            raise ValueError(
                f"--factor {self.factor} has {self.factor.bit_length()} levels, and --channel_mult "
                f"{','.join(map(str, self.channel_mult))} has {len(self.channel_mult)}: give one multiplier a level"
            )

    @property
    def multipliers(self) -> tuple[int, ...]:
        """The channel multiplier of every level, from full resolution down."""
        return self.channel_mult or ((1, 2, 4) if self.factor == 4 else (1, 2, 4, 4))


@dataclass(frozen=True)
class MachineConfig(Settings):
    """What the network runs on, and how."""

    RETIRED: ClassVar[tuple[str, ...]] = ("channels_last",)  # of older versions, in their files
    device: str = setting("auto", "auto, cpu, cuda or cuda:N", changes="nothing")
    precision: str = setting("fp32", "arithmetic of the network", choices=("fp32", "bf16", "fp16"))
    tf32: bool = setting(False, "GPU: products of float32 with the mantissa of TF32")
    compile: str = setting(
        "none", "torch.compile of the network; reduce-overhead uses CUDA graphs", changes="nothing",
        choices=("none", "default", "reduce-overhead", "max-autotune"),
    )  # fmt: skip
    workers: int = setting(0, "processes of a rank that read data (0: in the main process)", changes="nothing")
    rendezvous_timeout: float = setting(
        300.0, "seconds that ranks wait for each other at the start", above=0, changes="nothing"
    )


@dataclass(frozen=True)
class RunConfig(MachineConfig):
    """Optimisation and the run, whatever is trained."""

    CHANGES: ClassVar[str] = "nothing"
    run_dir: str = setting("", "directory of the run; default workdir/DATASET_SCHEDULE")
    total_steps: int = setting(100_000, "optimiser steps of the whole run", above=0)
    batch_size: int = setting(16, "images a step, over all ranks", above=0)
    microbatch: int = setting(0, "images a forward pass of a rank; gradients add up over several (0: all of a rank)")
    optimizer: str = setting("radam", "adam, or radam: with RAdam's rectified rate", choices=("radam", "adam"))
    lr: float = setting(1e-4, "learning rate", above=0)
    lr_warmup_steps: int = setting(0, "steps over which the learning rate rises from 0")
    lr_decay_steps: int = setting(0, "steps after which it falls like the inverse square root of the step; 0: never")
    weight_decay: float = setting(0.0, "decoupled weight decay")
    grad_clip: float = setting(1.0, "largest norm of the gradient (0: no limit)")
    max_skipped: int = setting(
        50, "steps in a row without a finite loss and gradient after which training gives up", above=0
    )
    ema_rate: tuple[float, ...] = setting(
        (0.9999,),
        "rates of moving averages, the first is the one sampled from; at most step / (step + 9)",
        below=1,
        changes="state",
    )
    ema_sigma_rel: tuple[float, ...] = setting(
        (0.05, 0.1), "widths of power function averages (EDM2); empty: none", above=0, below=12**-0.5, changes="state"
    )
    ema_interval: int = setting(1, "steps between updates of the averages", above=0, changes="state")
    ema_snapshots: int = setting(64, "snapshots of the power function averages over the run", above=0)
    augment: str = setting("none", "group whose random elements turn both images of a training pair")
    augment_angle: float = setting(0.0, "degrees by which training pairs are turned at most, inside their circle")
    augment_scale: float = setting(0.0, "they are enlarged or made smaller by a factor of 1 + this at most", below=1)
    augment_shift: int = setting(0, "whole pixels by which they are moved along each axis at most")
    seed: int = setting(0, "seed of weights, data order, noise")
    parallel: str = setting("ddp", "several ranks: ddp, copies; fsdp, one copy in shards", choices=("ddp", "fsdp"))
    checkpoint_blocks: bool = setting(False, "compute activations twice instead of keeping them: less memory")
    log_interval: int = setting(50, "steps between lines of the log", above=0)
    val_interval: int = setting(1_000, "steps between validation losses, each after a checkpoint", above=0)
    save_interval: int = setting(5_000, "steps between checkpoints", above=0)
    keep_checkpoints: int = setting(3, "newest checkpoints kept (0: all)")
    keep_every: int = setting(0, "checkpoints of steps that are multiples of this are kept, too (0: none)")
    time_limit: float = setting(0.0, "minutes after which training saves and ends, to be started again (0: none)")
    tensorboard: bool = setting(True, "curves and pictures for TensorBoard, in the run's directory")
    wandb: str = setting("", "project at Weights & Biases (needs its package); empty: none")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ema_rate:
            raise ValueError("--ema_rate is empty, expected at least one rate such as 0.9999")


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """Optimisation and the run."""

    regularization_weight: float = setting(
        0.0, "weight of the disagreement with the turned teacher (+Reg); 0: none", changes="state"
    )
    teacher_rate: float = setting(0.999, "rate of the teacher's moving average", below=1)
    loss_weighting: str = setting(
        "fixed", "learned: the loss of every time is also weighed by how large it is (EDM2)", changes="state",
        choices=("fixed", "learned"),
    )  # fmt: skip
    time_sampling: str = setting(
        "uniform", "times of training; lognormal: log(c/b), the noise over the target's share, is normal",
        choices=("uniform", "lognormal"),
    )  # fmt: skip
    latents: str = setting(
        "mode", "with a codec: the most likely latents of an image, or a sample of them at every step",
        choices=("mode", "sample"),
    )  # fmt: skip
    packed: str = setting("", "latents of the training pairs, encoded once: the folder that encode_dataset wrote")
    align_tolerance: int = setting(
        0, "training: the least loss over shifts of the target by up to so many pixels, for pairs that lie apart"
    )
    time_mean: float = setting(-0.4, "lognormal: mean of log(c/b)", signed=True)
    time_std: float = setting(1.0, "lognormal: its standard deviation", above=0)


@dataclass(frozen=True)
class EvalConfig(Settings):
    """Samples, metrics and the best checkpoint while training."""

    eval_interval: int = setting(0, "steps between looks at samples of validation images (0: never)", changes="nothing")
    eval_images: int = setting(16, "validation images sampled, evenly spread", above=0)
    eval_batch: int = setting(4, "images sampled at once; the ranks share these batches", above=0)
    eval_sampler: str = setting("dbim", "sampler of the evaluation")
    eval_nfe: int = setting(20, "network evaluations an image, at most", above=0)
    eval_seed: int = setting(0, "seed of the noise; with the index of an image it decides the image")
    best_metric: str = setting("psnr", "what the best checkpoint is best in", changes="nothing")


@dataclass(frozen=True)
class Config:
    """Everything a run is made of."""

    data: DataConfig = DataConfig()  # noqa: RUF009  # it is frozen
    bridge: BridgeConfig = BridgeConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()


@dataclass(frozen=True)
class Header:
    """What a checkpoint says of itself: `config.json`. What has a default is empty where an older version wrote it."""

    config: Config
    images: ImageShape
    step: int
    classes: tuple[str, ...] = ()  # names of the labels 0, 1, ...
    layout: str = ""  # how the training pairs lay
    native: tuple[int, ...] = ()  # height and width of the first of them, before it was fitted
    stored: tuple[str, ...] = ()  # types of a source's and of a target's pixels in their files, and a target's format
    codec: str = ""  # digest of the autoencoder in front of the bridge
    shift: tuple[float, ...] = ()  # of its latents, channel by channel: they are (z - shift) · scale
    scale: tuple[float, ...] = ()


@dataclass(frozen=True)
class CodecTrainConfig(RunConfig):
    """Optimisation of an autoencoder, and the run."""

    sides: str = setting(
        "both", "which images of the pairs it is trained on", choices=("both", "target", "source"), changes="state"
    )
    l1_weight: float = setting(1.0, "weight of the mean absolute error")
    l2_weight: float = setting(0.0, "weight of the mean squared error")
    kl_weight: float = setting(1e-6, "weight of the latents' KL divergence from N(0, 1), in nats over C · H · W")
    perceptual_weight: float = setting(1.0, "weight of the perceptual loss; 0: none")
    perceptual: str = setting(
        "auto", "LPIPS of a network, or raw: random filters; auto: vgg16 if its weights are here, else raw",
        choices=("auto", "vgg16", "alexnet", "raw"), changes="state",
    )  # fmt: skip
    equivariance_weight: float = setting(0.0, "weight of |D(g z) - g x| + |E(g x) - g E(x)|, one random g a batch")
    equivariance_group: str = setting("", "its group; empty: that of the layers")


@dataclass(frozen=True)
class CodecRun:
    """Everything a run that trains a codec is made of."""

    data: DataConfig = DataConfig()  # noqa: RUF009  # it is frozen
    codec: CodecConfig = CodecConfig()
    train: CodecTrainConfig = CodecTrainConfig()


@dataclass(frozen=True)
class CodecShape:
    """What an autoencoder needs to know of its images; kl: if it is a published one, how diffusers builds it (JSON)."""

    channels: int
    kl: str = ""


@dataclass(frozen=True)
class CodecHeader:
    """What the checkpoint of a codec says of itself."""

    config: CodecRun
    images: CodecShape
    step: int


@dataclass(frozen=True)
class SamplerConfig(MachineConfig):
    """How images are drawn from a trained model, whatever they are drawn for."""

    sampler: str = setting("dbim", "sampler")
    nfe: int = setting(20, "network evaluations an image, at most", above=0)
    grid: str = setting("", "times of the steps; empty: the sampler's own; dbim: of its published code")
    churn: float = setting(
        0.33, "heun: share of each step that is stochastic, in [0, 1); ecsi: of the noise, in [0, 1]"
    )
    guidance: float = setting(
        1.0,
        "heun, euler_maruyama: weight w of the pull towards the source; 1 in the theory. Under VE it is not the w of "
        "DDBM's code, whose flow with w is that of (1 + w)/2 here and whose stochastic steps ignore it",
    )
    order: int = setting(0, "dbim: 1, 2 or 3; dbmsolver: 1 or 2; 0: 2, or 1 with eta")
    eta: float = setting(0.0, "dbim of order 1: 0 deterministic after the first step, 1 stochastic")
    rtol: float = setting(1e-4, "ode: largest error of a step, relative to 1 + |x|", above=0)
    symmetrize: str = setting("none", "sample as the average over the group, or in the canonical frame of the source")
    group: str = setting("", "group for symmetrize and noise, if the model has none of its own")
    batch_size: int = setting(64, "images at once; halved until they fit the memory", above=0, changes="nothing")
    weights: str = setting("ema", "which weights: ema, another average of the checkpoint (ema_RATE), or model")
    codec: str = setting("", MOVED, changes="nothing")


@dataclass(frozen=True)
class SampleConfig(SamplerConfig):
    """How to sample; everything about the model comes from its checkpoint."""

    dataset: str = setting("", "dataset of the checkpoint (refused if it is another)", changes="nothing")
    schedule: str = setting("", "schedule of the checkpoint (refused if it is another)", changes="nothing")
    data_dir: str = setting("", "folder with the pairs; default: DATA_DIR, or that of training", changes="nothing")
    split: str = setting(
        "auto", "part of the data; auto: test, or all pairs of another folder without splits", choices=PARTS
    )
    seed: int = setting(0, "seed of the noise; with the index of an image it decides the image")
    draws: int = setting(1, "samples of every source, each from noise of its own", above=0)
    num_samples: int = setting(0, "images to sample, from the first (0: all)", changes="nothing")
    out_dir: str = setting("", "where to write; default samples/... in the run's directory", changes="nothing")
    png: bool = setting(False, "every sample as a PNG too, in a folder beside the npz", changes="nothing")
    trajectory: int = setting(0, "images, from the first, whose way is drawn as a strip of pictures", changes="nothing")


@dataclass(frozen=True)
class TranslateConfig(SamplerConfig):
    """How images without targets are translated; everything about the model comes from its checkpoint."""

    out: str = setting("", "folder to write to; needed", changes="nothing")
    answer: str = setting(
        "sample", "sample: one draw; mean: the best guess in the sense of MSE; both", choices=("sample", "mean", "both")
    )
    draws: int = setting(0, "samples that mean is the average of; 0: the estimate at T, one evaluation")
    scale: float = setting(0.0, "factor that inputs are resized by; 0: as the training did with its pairs")
    window: int = setting(0, "side of the windows that larger images are cut into; 0: that of the training images")
    overlap: float = setting(0.5, "least share of a window that its neighbour covers too", below=1)
    label: str = setting("", "class of the images, where the model has classes")
    seed: int = setting(0, "seed of the noise; with the position in the image it decides the noise")
    batch_size: int = setting(64, "windows at once; halved until they fit the memory", above=0, changes="nothing")
    workers: int = setting(1, "threads of a rank that read files ahead", above=0, changes="nothing")
