"""The configuration: typed, from defaults < YAML files < command line.

`--config a.yaml --config b.yaml --optim.lr 2e-4`; `--print_config` shows the result. The resolved
configuration is written into the run folder, and a resumed run must agree with it.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from stargan_dist.errors import UserError

set_parsing_settings(docstring_parse_attribute_docstrings=True)


@dataclass(frozen=True)
class SourceConfig:
    """One data set of several, and what its images are labelled with: binary attributes, or
    categories; with neither, its domains are the categories."""

    shards: str = ""
    """Folder or URL of its shards."""
    binary: list[str] = field(default_factory=list)
    """Attributes in the samples' JSON that are true or false (1, 0 or -1)."""
    exclusive: list[list[str]] = field(default_factory=list)
    """Groups of them of which one holds, such as colours of hair: in a target one is set and the
    others are cleared; an attribute of no group is flipped."""
    category: str = ""
    """Attribute in the samples' JSON that names the category; empty: the domain does."""
    categories: list[str] = field(default_factory=list)
    """The values of that attribute."""

    @property
    def labels_are_domains(self) -> bool:
        """Whether its domains are its labels."""
        return not (self.binary or self.category or self.categories)


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from."""

    shards: str = ""
    """Folder or URL of the shards (`python -m stargan_dist.shards build`). Their domains are the
    labels."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Instead: data sets by name, with labels of their own. Steps take one after the other."""
    workers: int = 4
    """Loader processes of each rank. Their number has no influence on the samples."""
    start_method: Literal["fork", "spawn", "forkserver"] = "fork"
    """How they are started: fork is the quickest; the others cannot inherit a held lock."""
    fast_decoding: bool = False
    """Decode and resize plain JPEGs the fast way: at a reduced scale where they are large, and
    with rounding errors of another kind (PSNR 50 dB and more)."""
    cache: str = ""
    """Local folder that keeps whole shards, for all ranks of a node; empty: each sample is fetched
    by its range of bytes."""
    cache_gib: float = 100.0
    """The cache's bound; what was used longest ago makes room."""
    on_bad_shard: Literal["stop", "skip"] = "stop"
    """What a sample that cannot be read does: end the run, or be replaced by another one."""
    max_skipped: int = 100
    """A run that has replaced more samples than this ends."""

    @property
    def sets(self) -> dict[str, SourceConfig]:
        """The data sets by name; that of `shards` has none."""
        return self.sources or {"": SourceConfig(self.shards)}

    @property
    def by_domain(self) -> bool:
        """Whether the labels are the domains of a single data set."""
        return [source.labels_are_domains for source in self.sets.values()] == [True]


@dataclass(frozen=True)
class StorageConfig:
    """How URLs are reached."""

    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options of fsspec's file systems by protocol: {s3: {endpoint_url: …}}. No secrets: they are
    written into the run folder; keep those in the environment."""
    tries: int = 4
    """How often a read or a write that fails is tried in all."""
    wait_seconds: float = 1.0
    """Before the second try, at most; doubled with each further one."""
    timeout_seconds: float = 10.0
    """A read of up to 8 MiB that takes longer has failed. Local files are waited for, and so are
    writes and listings, for as long as the store's own client allows."""


@dataclass(frozen=True)
class ModelConfig:
    """Size and form of the networks."""

    image_size: int = 256
    """Pixels a side: a power of two from 32 to 1024."""
    base_width: int = 0
    """Channels at full size; 0: the paper's, 2**14 / image_size (StarGAN's: 64)."""
    max_width: int = 0
    """Channels are doubled with each halving of the size, up to this; 0: the paper's, 512
    (StarGAN's: 2048)."""
    latent_dim: int = 16
    """Length of a latent z."""
    style_dim: int = 64
    """Length of a style code s."""
    mapping_dim: int = 512
    """Width of the mapping network F."""
    mapping: Literal["branches", "heads", "conditional"] = "branches"
    """Form of F: 4 shared layers and 4 per domain; 6 and 1; or conditional, for many domains."""
    w_hpf: float = 0.0
    """High-pass option of G. Needs landmark masks, which training does not make yet: 0."""


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses; null: the recipe's own."""

    reg: float | None = None
    """Of D: R1, or the gradient penalty."""
    cls: float | None = None
    """Classification by an ACGAN's D."""
    sty: float | None = None
    """Style (or latent) reconstruction."""
    cyc: float | None = None
    """Cycle consistency."""
    ds: float | None = None
    """Diversity, at the first step."""
    ms: float | None = None
    """Mode seeking, MSGAN's form of it."""
    ds_iter: int = 100_000
    """The step at which the diversity weight, falling linearly, reaches 0."""


@dataclass(frozen=True)
class ClipConfig:
    """Largest norm of each network's gradient, beyond which it is scaled down; 0: none."""

    G: float = 0.0
    F: float = 0.0
    E: float = 0.0
    D: float = 0.0


@dataclass(frozen=True)
class OptimConfig:
    """Adam, one for each network, and the averages of their weights; null: the recipe's own."""

    lr: float | None = None
    """Learning rate of G, E and D."""
    lr_mapping: float | None = None
    """Learning rate of F."""
    betas: tuple[float, float] | None = None
    """Adam's decay rates."""
    weight_decay: float | None = None
    """L2, not decoupled."""
    ema: float | None = None
    """Decay of the averaged weights of G, F and E, per step; 0: no averaging."""
    decay_begin: int | None = None
    """The step from which all rates fall linearly …"""
    decay_end: int | None = None
    """… to 0 at this step; 0: they do not fall."""
    lr_scaling: Literal["off", "linear", "sqrt"] = "off"
    """How both rates grow with the batch: not at all, or by batch_size / 8 (8 is the paper's
    batch), or by its square root, as theory has it for Adam (arXiv 2205.10287)."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What a gradient that is not finite does: end the run, or leave its network as it was."""
    max_nonfinite: int = 100
    """A run in which more iterations than this had one ends."""


@dataclass(frozen=True)
class EngineConfig:
    """How the processes share the work. None of it changes what is computed, beyond rounding."""

    name: Literal["ddp", "deepspeed"] = "ddp"
    """Every process holds everything, or DeepSpeed spreads it over them."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """Of DeepSpeed: what is spread. 1: optimizer states; 2: gradients as well; 3: weights of G, F
    and E as well (schedule summed; D stays at 2); 0: nothing."""
    offload_optimizer: bool = False
    """Of DeepSpeed: keep optimizer states in the machine's memory, and step there."""
    offload_parameters: bool = False
    """Of DeepSpeed at stage 3: keep weights in the machine's memory, too."""
    deepspeed_config: str = ""
    """JSON file of further DeepSpeed settings (bucket sizes, overlap, …)."""
    accumulate: int = 1
    """Micro-batches that each process makes of its share of a batch: less memory, same gradient."""
    timeout_seconds: float = 600.0
    """A rank that the others have waited for so long ends the run."""
    tf32: bool = True
    """On GPUs: multiply float32 numbers with 10-bit mantissas, which is many times as fast."""
    channels_last: Literal["auto", "on", "off"] = "auto"
    """Keep channels innermost in convolutions. auto: on GPUs, with DDP; DeepSpeed cannot."""
    compile: bool = False
    """Compile G and the trunks of E and D (torch.compile, for one batch size). R1's pass, whose
    gradient is differentiated again, stays as it is. Minutes at the start of each process."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved, and how long it is kept."""

    every: int = 5000
    """Steps between checkpoints."""
    keep_last: int = 3
    """The newest so many stay."""
    keep_every: int = 0
    """Those at multiples of this stay for good; 0: none."""
    background: bool = True
    """Write while training goes on. A failed write is tried again, then ends the run."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How translations are measured, and when during training."""

    every: int = 0
    """Steps between evaluations, which save a checkpoint as well; 0: none."""
    protocol: Literal["paper", "clean", "demo"] = "paper"
    """Which networks see the images: torchvision's Inception-v3, as in the paper; the TensorFlow
    one, as in most of the literature; or a small one trained on the set's own images."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the generator. What measures its images always computes in float32."""
    cache: str = ""
    """Folder or URL that keeps the statistics of real images; empty: beside the shards."""
    inception_weights: str = ""
    """File or URL of the Inception network's weights; empty: downloaded."""
    alexnet_weights: str = ""
    """File or URL of torchvision's AlexNet weights, for LPIPS; empty: downloaded."""


@dataclass(frozen=True)
class MonitorConfig:
    """What a run is watched with."""

    log_every: int = 50
    """Steps between progress lines and TensorBoard scalars."""
    sample_every: int = 2500
    """Steps between grids of translations; 0: none."""
    sources: int = 2
    """Sources of each domain in a grid; as many references."""
    latents: int = 3
    """Latents for each target domain in a grid."""


@dataclass(frozen=True)
class Config:
    """A training run."""

    run: str = ""
    """Folder or URL of the run. The same command again resumes it."""
    recipe: str = "f"
    """What is trained, a row of the table in objectives/recipes.py: a to f, the rows of the paper's
    ablation (f: StarGAN v2); stargan; c_acgan; f_mode_seeking."""
    steps: int = 100_000
    """Iterations in all."""
    batch_size: int = 8
    """Sources in each iteration, over all ranks together."""
    seed: int = 0
    """Of the initial weights, the order of the samples, augmentations and latents."""
    precision: Literal["float32", "bfloat16", "bfloat16_most", "float16", "float64"] = "float32"
    """What the networks compute in. bfloat16: G, all else float32; bfloat16_most and float16: the
    trunks of E and D as well, but for D's pass with R1. Weights and averaged networks are float32.
    float64 is for tests of equality."""
    schedule: Literal["exact", "summed"] = "exact"
    """Steps of the generator side: one for latents, then one of G for references, as published;
    or one for the sum of both losses, as ZeRO 3 needs it."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    data: DataConfig = field(default_factory=DataConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)


# What may differ when a run is resumed: none of it changes the parameters that come out.
FREE_FIELDS = (
    "run", "steps", "checkpoint.", "engine.", "evaluation.", "monitor.", "storage.", "data.shards",
    "data.workers", "data.start_method", "data.cache", "data.on_bad_shard", "data.max_skipped",
    "optim.on_nonfinite", "optim.max_nonfinite",
)  # fmt: skip
FREE_OF_SOURCE = re.compile(r"data\.sources\.[\w-]+\.shards")


def parse(argv: Sequence[str] | None = None, prog: str = "stargan_dist.train") -> Config:
    """Build the configuration from a command line.

    Raises:
        UserError: unknown key, wrong type or impossible value.
    """
    parser = ArgumentParser(
        prog=f"python -m {prog}",
        description="Train StarGAN v2, or another row of its table (--recipe). "
        "The same command again resumes the run.",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="YAML file; may be given several times.")
    parser.add_class_arguments(Config)
    try:
        namespace = parser.parse_args(None if argv is None else list(argv))
    except ArgumentError as error:
        raise UserError(" ".join(str(error).split())) from error
    del namespace["config"]
    config = Config(**parser.instantiate_classes(namespace).as_dict())
    check(config)
    return config


def check(config: Config) -> None:
    """Raises UserError for values that cannot work, naming the field."""
    size, model, loss, optim = config.model.image_size, config.model, config.loss, config.optim
    engine = config.engine
    zero3 = engine.name == "deepspeed" and engine.zero_stage == 3
    rules: list[Rule] = [
        (config.run, "run: name the folder of the run (--run RUN)"),
        *_source_rules(config.data),
        (32 <= size <= 1024 and size & (size - 1) == 0,
         f"model.image_size: {size} is not a power of two from 32 to 1024"),
        (model.w_hpf == 0, "model.w_hpf: training has no landmark masks yet, leave it at 0"),
        (min(model.base_width, model.max_width) >= 0,
         "model.base_width, model.max_width: must not be negative"),
        (loss.ds_iter >= 1, "loss.ds_iter: must be at least 1"),
        (all(rate is None or rate > 0 for rate in (optim.lr, optim.lr_mapping)),
         "optim.lr, optim.lr_mapping: must be positive"),
        (optim.ema is None or 0 <= optim.ema < 1, "optim.ema: must be in [0, 1)"),
        (all(0 <= beta < 1 for beta in optim.betas or ()), "optim.betas: each must be in [0, 1)"),
        (not optim.decay_end or 0 <= (optim.decay_begin or 0) < optim.decay_end,
         "optim.decay_begin: must not be negative, and below optim.decay_end"),
        (optim.decay_end is None or optim.decay_end or not optim.decay_begin,
         "optim.decay_end: at 0 rates do not fall, so optim.decay_begin has no use"),
        (not optim.decay_end or config.steps <= optim.decay_end,
         f"steps: at step {optim.decay_end} rates have fallen to 0 (optim.decay_end)"),
        (config.data.workers >= 0, "data.workers: must not be negative"),
        (config.data.max_skipped >= 0, "data.max_skipped: must not be negative"),
        (config.data.cache_gib > 0, "data.cache_gib: must be positive"),
        (config.storage.wait_seconds >= 0, "storage.wait_seconds: must not be negative"),
        (config.storage.timeout_seconds > 0, "storage.timeout_seconds: must be positive"),
        (config.checkpoint.keep_last >= 1, "checkpoint.keep_last: must be at least 1"),
        (config.evaluation.every >= 0, "evaluation.every: must not be negative"),
        (config.data.by_domain or not config.evaluation.every,
         "evaluation.every: what is measured is translation into domains, and data.sources has "
         "other labels: leave it at 0 and look at the grids"),
        (optim.max_nonfinite >= 0, "optim.max_nonfinite: must not be negative"),
        (min(dataclasses.astuple(optim.clip)) >= 0, "optim.clip: must not be negative"),
        (engine.timeout_seconds > 0, "engine.timeout_seconds: must be positive"),
        ((engine.name == "deepspeed" and engine.zero_stage) or not engine.offload_optimizer,
         "engine.offload_optimizer: ZeRO 1 to 3 alone can do it (--engine.name deepspeed)"),
        (engine.name == "deepspeed" or engine.zero_stage == 1,
         "engine.zero_stage: is for --engine.name deepspeed"),
        (engine.name == "ddp" or engine.channels_last != "on",
         "engine.channels_last: DeepSpeed lays weights out in its own way, leave it at auto"),
        (not (zero3 and engine.compile),
         "engine.compile: stage 3 takes weights apart between modules, which breaks graphs"),
        (zero3 or not engine.offload_parameters,
         "engine.offload_parameters: DeepSpeed at stage 3 alone can do it"),
        (engine.name == "deepspeed" or not engine.deepspeed_config,
         "engine.deepspeed_config: is for --engine.name deepspeed"),
        (engine.name == "ddp" or config.precision not in ("float16", "float64"),
         f"precision: DeepSpeed trains in float32 or bfloat16, not {config.precision}"),
        (not zero3 or config.schedule == "summed",
         "engine.zero_stage: 3 needs --schedule summed. A second step, of G alone, would apply "
         "what stage 3 keeps of the gradients of F and E once more"),
        (not zero3 or not any(dataclasses.astuple(optim.clip)[:3]),
         "optim.clip: stage 3 has G, F and E in one optimizer, whose gradients it cannot clip "
         "network by network"),
    ]  # fmt: skip
    positive = {
        "steps": config.steps, "batch_size": config.batch_size,
        "storage.tries": config.storage.tries, "engine.accumulate": engine.accumulate,
        "model.latent_dim": model.latent_dim,
        "model.style_dim": model.style_dim, "model.mapping_dim": model.mapping_dim,
        "checkpoint.every": config.checkpoint.every, "monitor.log_every": config.monitor.log_every,
        "monitor.sources": config.monitor.sources, "monitor.latents": config.monitor.latents,
    }  # fmt: skip
    rules += [(value >= 1, f"{name}: must be at least 1") for name, value in positive.items()]
    for holds, complaint in rules:
        if not holds:
            raise UserError(complaint)


Rule = tuple[object, str]  # what must hold, and the complaint


def _source_rules(data: DataConfig) -> list[Rule]:
    rules: list[Rule] = [
        (data.shards or data.sources,
         "data.shards: name the shards (--data.shards URL), or data.sources"),
        (not (data.shards and data.sources),
         "data.shards: is for a single set; leave it empty where data.sources names some"),
    ]  # fmt: skip
    for name, source in data.sources.items():
        rules += _rules_of_source(f"data.sources.{name}", source)
        told = f"data.sources: a name is of letters, digits, _ and -, not {name!r}"
        rules.append((re.fullmatch(r"[\w-]+", name), told))
    return rules


def _rules_of_source(where: str, source: SourceConfig) -> list[Rule]:
    grouped = [name for group in source.exclusive for name in group]
    return [
        (source.shards, f"{where}.shards: name the shards"),
        (not (source.binary and (source.category or source.categories)),
         f"{where}.binary: a set has binary attributes or categories, not both"),
        (len({*source.binary}) == len(source.binary), f"{where}.binary: an attribute occurs twice"),
        ({*grouped} <= {*source.binary},
         f"{where}.exclusive: {', '.join(sorted({*grouped} - {*source.binary}))} must be among "
         f"{where}.binary"),
        (len({*grouped}) == len(grouped), f"{where}.exclusive: an attribute occurs twice"),
        (all(len(group) >= 2 for group in source.exclusive),
         f"{where}.exclusive: a group has at least two attributes"),
        (source.category or not source.categories,
         f"{where}.category: name the attribute whose values categories lists; without both, the "
         "domains are the categories"),
        (not source.category or len(source.categories) >= 2,
         f"{where}.categories: list the values of {source.category}, at least two"),
        (len({*source.categories}) == len(source.categories),
         f"{where}.categories: a category occurs twice"),
    ]  # fmt: skip


def check_world(config: Config, world_size: int) -> None:
    """Raises UserError unless the global batch divides evenly among ranks and micro-batches."""
    micro_batches = config.engine.accumulate
    parts = world_size * micro_batches
    if config.batch_size % parts:
        times = f" times engine.accumulate, {micro_batches}" if micro_batches > 1 else ""
        raise UserError(
            f"batch_size: {config.batch_size} is the global batch and must be a multiple of the "
            f"number of processes, {world_size}{times}; "
            f"{parts * -(-config.batch_size // parts)} would do"
        )


def describe(config: Config) -> str:
    """How a run computes, for its first line."""
    engine = config.engine
    parts = [
        "DDP" if engine.name == "ddp" else f"ZeRO {engine.zero_stage}",
        config.precision,
        f"{config.schedule} schedule",
    ]
    if engine.accumulate > 1:
        parts.append(f"{engine.accumulate} micro-batches")
    return ", ".join(parts)


def to_dict(config: Config) -> dict[str, Any]:
    """Plain values only, as YAML and JSON have them."""
    row = dataclasses.asdict(config)
    row["optim"]["betas"] = config.optim.betas and list(config.optim.betas)
    return row


def to_yaml(config: Config) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def from_dict(row: dict[str, Any]) -> Config:
    """The inverse of `to_dict`, with the same checks as the command line."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Config)
    try:
        config = Config(**parser.instantiate_classes(parser.parse_object(row)).as_dict())
    except ArgumentError as error:
        raise UserError(" ".join(str(error).split())) from error
    check(config)
    return config


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        flat |= (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return flat


def _free(name: str) -> bool:
    return name.startswith(FREE_FIELDS) or FREE_OF_SOURCE.fullmatch(name) is not None


def check_resumable(saved: dict[str, Any], config: Config, run: str) -> None:
    """Raises UserError if a run was made with another configuration, naming what differs."""
    old, new = _flat(saved), _flat(to_dict(config))
    differing = [
        f"{name} was {old.get(name)}, is {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not _free(name)
    ]
    if differing:
        raise UserError(
            f"{run} was trained with another configuration ({'; '.join(differing)}): "
            "give the old values to resume it, or another --run"
        )
