"""The fields of a configuration: types, defaults, and the help of the command line."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from jsonargparse import set_parsing_settings
from jsonargparse.typing import NonNegativeInt, PositiveInt, restricted_number_type

set_parsing_settings(docstring_parse_attribute_docstrings=True)

INFINITY = float("inf")
LONGEST_SECONDS = 1e9  # 30 years: timers fail at larger numbers

# Numbers within bounds: none is infinite or NaN.
if TYPE_CHECKING:
    FiniteFloat: TypeAlias = float
    PositiveFloat: TypeAlias = float
    NonNegativeFloat: TypeAlias = float
    Seconds: TypeAlias = float
    NonNegativeSeconds: TypeAlias = float
    Seed: TypeAlias = int
else:

    def _float(name: str, *bounds: tuple[str, float]) -> type:
        return restricted_number_type(name, float, list(bounds))

    FiniteFloat = _float("FiniteFloat", (">", -INFINITY), ("<", INFINITY))
    PositiveFloat = _float("PositiveFiniteFloat", (">", 0), ("<", INFINITY))
    NonNegativeFloat = _float("NonNegativeFiniteFloat", (">=", 0), ("<", INFINITY))
    Seconds = _float("Seconds", (">", 0), ("<=", LONGEST_SECONDS))
    NonNegativeSeconds = _float("NonNegativeSeconds", (">=", 0), ("<=", LONGEST_SECONDS))
    Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**63)])


@dataclass(frozen=True)
class SourceConfig:
    """One data source of several, and the labels of its images: binary attributes or categories.

    With neither, its domains are the categories.
    """

    shards: str = ""
    """Folder or URL of its shards."""
    binary: list[str] = field(default_factory=list)
    """Attributes in the samples' JSON that are true or false (1, 0 or -1)."""
    exclusive: list[list[str]] = field(default_factory=list)
    """Groups of binary attributes of which exactly one is true, such as hair colours. A target sets
    one attribute of a group and clears the others; it flips an attribute outside all groups."""
    category: str = ""
    """Attribute in the samples' JSON that names the category; empty: the domain is the category."""
    categories: list[str] = field(default_factory=list)
    """The values of that attribute."""

    @property
    def labels_are_domains(self) -> bool:
        """The domains of this source are its labels."""
        return not (self.binary or self.category or self.categories)


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how they are loaded."""

    shards: str = ""
    """Folder or URL of the shards (`python -m stargan_dist.shards build`). Their domains are the
    labels."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """In place of `shards`: data sources by name, each with its own labels. Steps alternate between
    them."""
    pair: list[str] = field(default_factory=list)
    """Two of the domains of `shards`, such as [cat, dog]: the only ones of the run, in this order.
    Empty: all domains."""
    workers: NonNegativeInt = 4
    """Loader processes per rank. Their number does not affect the samples."""
    start_method: Literal["fork", "spawn", "forkserver"] = "fork"
    """Start method of the loader processes: fork is the fastest; the others inherit no locks."""
    fast_decoding: bool = False
    """Decode and resize plain JPEGs faster: large images at reduced scale, and with different
    rounding (PSNR 50 dB or more)."""
    ahead_mib: NonNegativeInt = 64
    """MiB of samples that each loader process fetches from URLs before it needs them, many requests
    at a time; 0: one sample at a time. It does not affect the samples."""
    cache: str = ""
    """Local folder for whole shards, shared by all ranks of a node; empty: fetch each sample by its
    byte range."""
    cache_gib: PositiveFloat = 100.0
    """Size limit of the cache. Shards that are read again last are removed first."""
    on_bad_shard: Literal["stop", "skip"] = "stop"
    """Policy for unreadable samples: stop the run, or replace them."""
    max_skipped: NonNegativeInt = 100
    """Replaced samples after which the run stops."""

    @property
    def all_sources(self) -> dict[str, SourceConfig]:
        """All data sources by name; the one given as `shards` has an empty name."""
        return self.sources or {"": SourceConfig(self.shards)}

    @property
    def by_domain(self) -> bool:
        """The labels are the domains of a single data source."""
        return [source.labels_are_domains for source in self.all_sources.values()] == [True]


@dataclass(frozen=True)
class StorageConfig:
    """Access to URLs."""

    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options of fsspec's file systems by protocol: {s3: {endpoint_url: …}}. Keep secrets in the
    environment: these options are written into the run folder."""
    tries: PositiveInt = 8
    """Attempts of each read and write, the first one included. With the default waits, a server may
    be away for 90 s."""
    wait_seconds: NonNegativeSeconds = 1.0
    """Wait before the second attempt; doubled for each further one, up to 30 s."""
    timeout_seconds: Seconds = 10.0
    """Time limit of a read of up to 8 MiB. Local files have none; writes and listings have that of
    the store's own client."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and forms of the networks."""

    image_size: Literal[32, 64, 128, 256, 512, 1024] = 256
    """Width and height in pixels."""
    base_width: NonNegativeInt = 0
    """Channels at full resolution; 0: the paper's, 2**14 / image_size (StarGAN, CycleGAN, MUNIT,
    DRIT: 64)."""
    max_width: NonNegativeInt = 0
    """Channels double with each downsampling, up to this number; 0: the paper's, 512 (StarGAN:
    2048). In StarGAN, CycleGAN, MUNIT and DRIT it bounds those of D alone."""
    latent_dim: NonNegativeInt = 0
    """Length of a latent z; 0: the paper's, 16 (MUNIT, DRIT: 8)."""
    style_dim: PositiveInt = 64
    """Length of a style code s."""
    mapping_dim: PositiveInt = 512
    """Width of the mapping network F."""
    mapping: Literal["branches", "heads", "conditional"] = "branches"
    """Form of F: 4 shared layers and 4 per domain; 6 and 1; or conditional, for many domains."""
    w_hpf: FiniteFloat = 0.0
    """Weight of G's high-pass option, which carries outlines of the source; 0: off. The published
    model of faces has 1. It needs model.landmarks."""
    landmarks: str = ""
    """Landmark network that makes the masks of the high-pass option, as a file or URL: one of
    `stargan_dist.landmarks train`, the wing.ckpt or a NNNNNN_nets_ema.ckpt of StarGAN v2's authors.
    It is copied into the run; a resumed run need not name it."""


@dataclass(frozen=True)
class InitConfig:
    """Initial weights from a trained model (`--init MODEL` is `--init.model MODEL`)."""

    model: str = ""
    """Run, checkpoint, model folder, file of the papers' authors, or USER/NAME on the Hugging Face
    hub. G and C are taken whole; F, E and D by the names of the domains. Empty: random weights."""
    checkpoint: str = "latest"
    """Of a run: latest, best or a step."""
    domains: list[str] = field(default_factory=list)
    """Of a file of the authors, which has no names: those of its domains, in its order."""
    new_domains: Literal["random", "mean"] = "random"
    """Initial weights of domains that the model does not have: random ones, or the mean of its
    domains."""


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms; null: the recipe's own."""

    reg: FiniteFloat | None = None
    """R1, or the gradient penalty, of D."""
    cls: FiniteFloat | None = None
    """Classification by an ACGAN discriminator."""
    sty: FiniteFloat | None = None
    """Style (or latent) reconstruction."""
    cyc: FiniteFloat | None = None
    """Cycle consistency. MUNIT: 0, as for most of its datasets; 10 for the others."""
    idt: FiniteFloat | None = None
    """Identity: a source that is translated to its own domain stays as it is. MUNIT: image
    reconstruction, with the source's own style."""
    con: FiniteFloat | None = None
    """Content reconstruction: the fake has the features of its source."""
    ds: FiniteFloat | None = None
    """Diversity, at the first step."""
    ms: FiniteFloat | None = None
    """Mode seeking, MSGAN's form of diversity."""
    dom: FiniteFloat | None = None
    """Domain of contents: C tells it, and G's contents must not show it."""
    kl: FiniteFloat | None = None
    """KL divergence of the styles that E predicts from N(0, I)."""
    l2: FiniteFloat | None = None
    """Mean square of contents."""
    ds_iter: PositiveInt = 100_000
    """Step at which the diversity weight, decaying linearly, reaches 0."""


@dataclass(frozen=True)
class ClipConfig:
    """Maximum gradient norm of each network; larger gradients are scaled down. 0: no clipping."""

    G: NonNegativeFloat = 0.0
    F: NonNegativeFloat = 0.0
    E: NonNegativeFloat = 0.0
    D: NonNegativeFloat = 0.0
    C: NonNegativeFloat | None = None
    """null: the recipe's own."""


@dataclass(frozen=True)
class OptimConfig:
    """Adam, one per network, and the averages of the weights; null: the recipe's own."""

    lr: FiniteFloat | None = None
    """Learning rate of G, E and D."""
    lr_mapping: FiniteFloat | None = None
    """Learning rate of F."""
    lr_content: FiniteFloat | None = None
    """Learning rate of C, the discriminator of contents."""
    betas: tuple[FiniteFloat, FiniteFloat] | None = None
    """Adam's decay rates."""
    weight_decay: FiniteFloat | None = None
    """L2 penalty, not decoupled."""
    ema: FiniteFloat | None = None
    """Decay per step of the averaged weights of G, F and E; 0: no averaging."""
    decay_begin: int | None = None
    """Step at which all learning rates begin to decay linearly …"""
    decay_end: int | None = None
    """… and the step at which they reach 0; 0: no decay."""
    halve_every: int | None = None
    """Steps after which all learning rates are halved, each time again; 0: never."""
    lr_scaling: Literal["off", "linear", "sqrt"] = "off"
    """Scaling of both learning rates with the batch: none, by batch_size / 8 (8 is the paper's
    batch), or by its square root, as theory suggests for Adam (arXiv 2205.10287)."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """Policy for gradients that are not finite: stop the run, or leave their network unchanged."""
    max_nonfinite: NonNegativeInt = 100
    """Iterations with such gradients after which the run stops."""


@dataclass(frozen=True)
class EngineConfig:
    """Distribution of the work over the processes. It changes results by rounding alone."""

    name: Literal["ddp", "deepspeed"] = "ddp"
    """Every process holds everything, or DeepSpeed shards it over the processes."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed shards. 1: optimizer states; 2: gradients as well; 3: weights of G, F and E as
    well (needs schedule summed; D stays at 2); 0: nothing."""
    offload_optimizer: bool = False
    """DeepSpeed: keep optimizer states in host memory, and step there."""
    offload_parameters: bool = False
    """DeepSpeed at stage 3: keep weights in host memory as well."""
    deepspeed_config: str = ""
    """JSON file of further DeepSpeed settings (bucket sizes, overlap, …)."""
    accumulate: PositiveInt = 1
    """Micro-batches per process and batch: less memory, same gradient."""
    timeout_seconds: Seconds = 600.0
    """Time to wait for a rank before the run ends."""
    tf32: bool = True
    """On GPUs: multiply float32 numbers with 10-bit mantissas, which is many times faster."""
    channels_last: Literal["auto", "on", "off"] = "auto"
    """Memory format of convolutions. auto: channels last on GPUs with DDP; DeepSpeed does not
    support it."""
    compile: bool = False
    """Compile G and the trunks of E and D (torch.compile, for one batch size). The pass of R1,
    whose gradient is differentiated again, is not compiled. Takes minutes at the start of each
    process."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are saved, and which are kept."""

    every: PositiveInt = 5000
    """Steps between checkpoints."""
    keep_last: PositiveInt = 3
    """Number of newest checkpoints to keep."""
    keep_every: NonNegativeInt = 0
    """Keep checkpoints at multiples of this step for good; 0: none."""
    background: bool = True
    """Write while training continues. In either case a failed write is retried for 90 s, then stops
    the run."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How translations are evaluated, and when during training."""

    every: NonNegativeInt = 0
    """Steps between evaluations, each of which saves a checkpoint first; 0: none."""
    protocol: Literal["paper", "clean", "demo"] = "paper"
    """Feature extractors: torchvision's Inception-v3, as in the paper; the TensorFlow one, as in
    most of the literature; or a small network trained on the dataset's own images."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of the generator. Feature extractors always compute in float32."""
    cache: str = ""
    """Folder or URL for the statistics of real images; empty: beside the shards."""
    labels: bool = False
    """Measure translation to single labels, by a classifier of real images, where the labels are
    domains as well. Attributes and the labels of several data sources are always measured so."""
    inception_weights: str = ""
    """File or URL of the weights of the Inception network; empty: download them."""
    alexnet_weights: str = ""
    """File or URL of the weights of torchvision's AlexNet, for LPIPS; empty: download them."""


@dataclass(frozen=True)
class MonitorConfig:
    """Logging and sample grids."""

    log_every: PositiveInt = 50
    """Steps between log lines and logged metrics."""
    sample_every: NonNegativeInt = 2500
    """Steps between grids of translations; 0: none."""
    sources: PositiveInt = 2
    """Sources per domain in a grid; also the number of references."""
    latents: PositiveInt = 3
    """Latents per target domain in a grid."""
    profile: NonNegativeInt = 0
    """Iterations, after three others, that torch's profiler records on rank 0: a trace in the run's
    folder profile, and a table of the costliest operations in the log; 0: none."""
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Where metrics are shown, beside RUN/metrics.jsonl: tensorboard, wandb, mlflow, trackio,
    comet_ml, clearml, aim, dvclive, swanlab; []: nowhere."""


@dataclass(frozen=True)
class Config:
    """A training run."""

    run: str = ""
    """Folder or URL of the run. The same command resumes it."""
    recipe: str = "f"
    """What to train, a row of the table in objectives/recipes.py: a to f, the rows of the paper's
    ablation (f: StarGAN v2); stargan; c_acgan; f_mode_seeking; cyclegan; munit; drit; msgan."""
    steps: PositiveInt = 100_000
    """Iterations in total."""
    batch_size: PositiveInt = 8
    """Sources per iteration, over all ranks."""
    seed: Seed = 0
    """Seed of initial weights, sample order, augmentations and latents."""
    precision: Literal["float32", "bfloat16", "bfloat16_most", "float16", "float64"] = "float32"
    """Compute dtype of the networks. bfloat16: G alone; bfloat16_most and float16: also the trunks
    of E, D and C, except in D's pass with R1. Weights and averaged networks are float32. float64 is
    for equality tests."""
    schedule: Literal[
        "published", "summed", "lazy", "joint", "joint_lazy", "sparse", "fast", "exact"
    ] = "published"
    """What an iteration computes (docs/engines.md). published: a step of D and of the generator for
    each guide. Others cost less, fast a third (their quality: docs/benchmarks.md). Summed, joint,
    joint_lazy and sparse are those that ZeRO 3 accepts. (exact: former name of published.)"""
    engine: EngineConfig = field(default_factory=EngineConfig)
    data: DataConfig = field(default_factory=DataConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    init: InitConfig = field(default_factory=InitConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
