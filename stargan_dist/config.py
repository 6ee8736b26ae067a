"""The configuration of a run: typed, from defaults < YAML files < command line.

`--config a.yaml --config b.yaml --optim.lr 2e-4`; `--print_config` prints the result. The resolved
configuration is written into the run folder, and a resumed run must agree with it.
"""

import dataclasses
import json
import logging
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import yaml
from jsonargparse import (
    ArgumentError,
    ArgumentParser,
    Namespace,
    get_loader,
    set_loader,
    set_parsing_settings,
)
from jsonargparse.typing import NonNegativeInt, PositiveInt, restricted_number_type

from stargan_dist.errors import UserError, is_utf8, printable

logger = logging.getLogger(__name__)
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
    workers: NonNegativeInt = 4
    """Loader processes per rank. Their number does not affect the samples."""
    start_method: Literal["fork", "spawn", "forkserver"] = "fork"
    """Start method of the loader processes: fork is the fastest; the others inherit no locks."""
    fast_decoding: bool = False
    """Decode and resize plain JPEGs faster: large images at reduced scale, and with different
    rounding (PSNR 50 dB or more)."""
    cache: str = ""
    """Local folder for whole shards, shared by all ranks of a node; empty: fetch each sample by its
    byte range."""
    cache_gib: PositiveFloat = 100.0
    """Size limit of the cache. The least recently used shards are removed."""
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
    """Channels at full resolution; 0: the paper's, 2**14 / image_size (StarGAN: 64)."""
    max_width: NonNegativeInt = 0
    """Channels double with each downsampling, up to this number; 0: the paper's, 512 (StarGAN:
    2048)."""
    latent_dim: PositiveInt = 16
    """Length of a latent z."""
    style_dim: PositiveInt = 64
    """Length of a style code s."""
    mapping_dim: PositiveInt = 512
    """Width of the mapping network F."""
    mapping: Literal["branches", "heads", "conditional"] = "branches"
    """Form of F: 4 shared layers and 4 per domain; 6 and 1; or conditional, for many domains."""
    w_hpf: FiniteFloat = 0.0
    """Weight of G's high-pass option. It needs landmark masks, which training does not produce yet:
    must be 0."""


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
    """Cycle consistency."""
    ds: FiniteFloat | None = None
    """Diversity, at the first step."""
    ms: FiniteFloat | None = None
    """Mode seeking, MSGAN's form of diversity."""
    ds_iter: PositiveInt = 100_000
    """Step at which the diversity weight, decaying linearly, reaches 0."""


@dataclass(frozen=True)
class ClipConfig:
    """Maximum gradient norm of each network; larger gradients are scaled down. 0: no clipping."""

    G: NonNegativeFloat = 0.0
    F: NonNegativeFloat = 0.0
    E: NonNegativeFloat = 0.0
    D: NonNegativeFloat = 0.0


@dataclass(frozen=True)
class OptimConfig:
    """Adam, one per network, and the averages of the weights; null: the recipe's own."""

    lr: FiniteFloat | None = None
    """Learning rate of G, E and D."""
    lr_mapping: FiniteFloat | None = None
    """Learning rate of F."""
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


@dataclass(frozen=True)
class Config:
    """A training run."""

    run: str = ""
    """Folder or URL of the run. The same command resumes it."""
    recipe: str = "f"
    """What to train, a row of the table in objectives/recipes.py: a to f, the rows of the paper's
    ablation (f: StarGAN v2); stargan; c_acgan; f_mode_seeking."""
    steps: PositiveInt = 100_000
    """Iterations in total."""
    batch_size: PositiveInt = 8
    """Sources per iteration, over all ranks."""
    seed: Seed = 0
    """Seed of initial weights, sample order, augmentations and latents."""
    precision: Literal["float32", "bfloat16", "bfloat16_most", "float16", "float64"] = "float32"
    """Compute dtype of the networks. bfloat16: G alone; bfloat16_most and float16: also the trunks
    of E and D, except in D's pass with R1. Weights and averaged networks are float32. float64 is
    for equality tests."""
    schedule: Literal["published", "summed", "exact"] = "published"
    """Generator steps of an iteration: one for latents, then one of G for references, as published;
    or one for the sum of both losses, which ZeRO 3 needs. (exact: the former name of published.)"""
    engine: EngineConfig = field(default_factory=EngineConfig)
    data: DataConfig = field(default_factory=DataConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)


# Fields that may change when a run is resumed: none of them changes the resulting parameters.
FREE_FIELDS = (
    "run", "steps", "checkpoint.", "engine.", "evaluation.", "monitor.", "storage.", "data.shards",
    "data.workers", "data.start_method", "data.cache", "data.on_bad_shard", "data.max_skipped",
    "optim.on_nonfinite", "optim.max_nonfinite",
)  # fmt: skip
FREE_SOURCE_FIELDS = re.compile(r"data\.sources\.[\w-]+\.shards")


def parse(argv: Sequence[str] | None = None, prog: str = "stargan_dist.train") -> Config:
    """Build the configuration from a command line.

    Raises:
        UserError: unknown key, wrong type or invalid value.
    """
    parser = ArgumentParser(
        prog=f"python -m {prog}",
        description="Train StarGAN v2, or another recipe of its table (--recipe). "
        "The same command resumes the run.",
        exit_on_error=False,
        allow_abbrev=True,
    )
    parser.add_argument("--config", action="config", help="YAML file; may be given several times.")
    parser.add_class_arguments(Config)
    with _parse_errors():
        namespace = parser.parse_args(None if argv is None else list(argv))
    del namespace["config"]
    config = _build(parser, namespace)
    if config.schedule == "exact":
        logger.warning("schedule: exact is now called published")
    return _checked(config)


def from_dict(values: dict[str, Any]) -> Config:
    """Build a configuration from plain values: the inverse of `to_dict`, with all checks.

    Raises:
        UserError: unknown key, wrong type or invalid value.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Config)
    with _parse_errors():
        namespace = parser.parse_object(values)
    return _checked(_build(parser, namespace))


# Phrases of jsonargparse's errors, and clearer ones.
CLEARER_ERRORS = (
    (r'^Parser key "([^"]*)": ', r"\1: "),
    (r"Not of type \w+: (\S+) does not conform to restriction v(.*)$", r"must be \2, not \1"),
    (r"(must be .*) and v<inf, not", r"\1 and finite, not"),
    (r"must be >-inf and finite", "must be finite"),
    (r"(must be .*) and v<", r"\1 and <"),
    (r"(<class ')?jsonargparse\.typing\.FiniteFloat('>)?", "a finite number"),
    (r"Not of type \w+: ", ""),
    (r"Does not validate .* Subtypes: \[(.*?)\] Errors: .* Given value: (.*)$",
     r"expected \1, not \2"),
    (r"<class '(\w+)'>", r"\1"),
    (r", NoneType", " or null"),
    (r"Expected a typing\.Literal\[(.*)\]\. Got value: (.*)$", r"must be one of \1, not \2"),
)  # fmt: skip


# YAML.

MAX_ERROR = 1000  # characters of an error, which may show a value of a file
MAX_YAML_CHARACTERS = 2**20
MAX_YAML_VALUES = 100_000  # with aliases expanded, as all later code sees them
_load_any_yaml = get_loader("yaml")


def _load_yaml(text: str) -> Any:
    """Load YAML of bounded size: ten lines of aliases of aliases can stand for billions of values.

    Raises:
        yaml.YAMLError: it is not YAML, or too large.
    """
    if len(text) > MAX_YAML_CHARACTERS:
        raise yaml.YAMLError(f"more than {MAX_YAML_CHARACTERS} characters")
    try:
        value = _load_any_yaml(text)
    except yaml.YAMLError:
        raise
    except Exception as error:  # constructors of dates and numbers raise errors of their own
        raise yaml.YAMLError(str(error).partition(";")[0]) from error
    if _count_values(value, {}) > MAX_YAML_VALUES:
        raise yaml.YAMLError(f"aliases that expand to more than {MAX_YAML_VALUES} values")
    return value


set_loader("yaml", _load_yaml, exceptions=(yaml.YAMLError,))


def _count_values(value: Any, counts: dict[int, float]) -> float:
    """Count the values in a list or mapping and below; infinitely many if it contains itself.

    Args:
        value: a value loaded from YAML. Aliases are the same object.
        counts: results by identity, which are added here.
    """
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in counts:
        counts[id(value)] = math.inf  # found again inside itself
        children = value.values() if isinstance(value, dict) else value
        counts[id(value)] = 1 + sum(_count_values(child, counts) for child in children)
    return counts[id(value)]


@contextmanager
def _parse_errors() -> Iterator[None]:
    """Convert errors of the parser to UserErrors of one line."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"--config: a file is not UTF-8 ({error}); save it as UTF-8") from error
    except ArgumentError as error:
        message = " ".join(str(error).split())
        for pattern, replacement in CLEARER_ERRORS:
            message = re.sub(pattern, replacement, message)
        raise UserError(printable(message, MAX_ERROR)) from error


def _check_groups(kind: Any, values: Any, name: str = "") -> None:
    """Check what the parser does not: groups of settings are not single values, numbers not null.

    Raises:
        UserError: one is.
    """
    if not isinstance(values, Namespace | dict):
        raise UserError(f"{name}: expected settings by name, not {values!r:.200}")
    for field_ in dataclasses.fields(kind):
        field_name = f"{name}.{field_.name}" if name else field_.name
        if dataclasses.is_dataclass(field_.type):
            _check_groups(field_.type, values.get(field_.name), field_name)
        elif values.get(field_.name) is None and field_.default is not None:
            raise UserError(f"{field_name}: must have a value, not null")


def _build(parser: ArgumentParser, namespace: Namespace) -> Config:
    _check_groups(Config, namespace)
    return Config(**_plain(parser.instantiate(namespace).as_dict()))


def _plain(value: Any) -> Any:
    """Convert jsonargparse's restricted numbers to int and float."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    number_types = (kind for kind in (bool, int, float) if isinstance(value, kind))
    return next(number_types, lambda same: same)(value)


def _checked(config: Config) -> Config:
    """Return a valid configuration, with present names in place of former ones."""
    if config.schedule == "exact":
        config = dataclasses.replace(config, schedule="published")
    check(config)
    return config


Rule = tuple[object, str]  # a condition that must be true, and the error if it is not


def check(config: Config) -> None:
    """Check what the types of single fields do not express.

    Raises:
        UserError: fields have values that do not work, or not together. Names the field.
    """
    rules = [
        (config.run, "run: name the folder of the run (--run RUN)"),
        *_text_rules(config),
        *_source_rules(config.data),
        *_training_rules(config),
        *_engine_rules(config),
    ]
    for condition, message in rules:
        if not condition:
            raise UserError(printable(message, MAX_ERROR))


def _text_rules(config: Config) -> list[Rule]:
    """Require text that can be saved: arguments that are not UTF-8 contain surrogates."""
    return [
        (is_utf8(name + json.dumps(value, ensure_ascii=False, default=str)),
         f"{name!a}: {value!a} is not UTF-8; rename it")
        for name, value in flat(to_dict(config)).items()
    ]  # fmt: skip


def _training_rules(config: Config) -> list[Rule]:
    optim = config.optim
    return [
        (all(rate is None or rate > 0 for rate in (optim.lr, optim.lr_mapping)),
         "optim.lr, optim.lr_mapping: must be positive"),
        (optim.ema is None or 0 <= optim.ema < 1, "optim.ema: must be in [0, 1)"),
        (all(0 <= beta < 1 for beta in optim.betas or ()), "optim.betas: each must be in [0, 1)"),
        (config.model.w_hpf == 0,
         "model.w_hpf: training does not produce landmark masks yet; leave it at 0"),
        (not optim.decay_end or 0 <= (optim.decay_begin or 0) < optim.decay_end,
         "optim.decay_begin: must not be negative, and must be less than optim.decay_end"),
        (optim.decay_end is None or optim.decay_end or not optim.decay_begin,
         "optim.decay_begin: has no effect where optim.decay_end is 0; set both or neither"),
        (not optim.decay_end or config.steps <= optim.decay_end,
         f"steps: learning rates reach 0 at step {optim.decay_end} (optim.decay_end); "
         "reduce steps or raise optim.decay_end"),
        (config.data.by_domain or not config.evaluation.every,
         "evaluation.every: evaluation measures translation between domains, and data.sources has "
         "other labels; leave it at 0 and look at the sample grids"),
    ]  # fmt: skip


def _engine_rules(config: Config) -> list[Rule]:
    engine, clip = config.engine, config.optim.clip
    deepspeed = engine.name == "deepspeed"
    zero3 = deepspeed and engine.zero_stage == 3
    return [
        ((deepspeed and engine.zero_stage) or not engine.offload_optimizer,
         "engine.offload_optimizer: needs ZeRO 1, 2 or 3 (--engine.name deepspeed)"),
        (deepspeed or engine.zero_stage == 1,
         "engine.zero_stage: needs --engine.name deepspeed"),
        (not deepspeed or engine.channels_last != "on",
         "engine.channels_last: DeepSpeed has a memory layout of its own; leave it at auto"),
        (not (zero3 and engine.compile),
         "engine.compile: ZeRO 3 shards weights between modules, which breaks compiled graphs; "
         "use a lower engine.zero_stage"),
        (zero3 or not engine.offload_parameters,
         "engine.offload_parameters: needs DeepSpeed at stage 3 (--engine.zero_stage 3)"),
        (deepspeed or not engine.deepspeed_config,
         "engine.deepspeed_config: needs --engine.name deepspeed"),
        (not deepspeed or config.precision not in ("float16", "float64"),
         f"precision: DeepSpeed trains in float32 or bfloat16, not {config.precision}"),
        (not zero3 or config.schedule == "summed",
         "engine.zero_stage: 3 needs --schedule summed. A second step, of G alone, would apply the "
         "gradients of F and E that stage 3 keeps once more"),
        (not zero3 or not any((clip.G, clip.F, clip.E)),
         "optim.clip: ZeRO 3 has one optimizer for G, F and E, and cannot clip each network; set "
         "optim.clip.D alone"),
    ]  # fmt: skip


def _source_rules(data: DataConfig) -> list[Rule]:
    rules: list[Rule] = [
        (data.shards or data.sources,
         "data.shards: name the shards (--data.shards URL), or data.sources"),
        (not (data.shards and data.sources),
         "data.shards: names a single dataset; leave it empty where data.sources is given"),
    ]  # fmt: skip
    for name, source in data.sources.items():
        rules += _rules_of_source(f"data.sources.{name}", source)
        message = f"data.sources: a name consists of letters, digits, _ and -, not {name!r}"
        rules.append((re.fullmatch(r"[\w-]+", name), message))
    return rules


def _rules_of_source(where: str, source: SourceConfig) -> list[Rule]:
    grouped = [name for group in source.exclusive for name in group]
    return [
        (source.shards, f"{where}.shards: name the shards"),
        (not (source.binary and (source.category or source.categories)),
         f"{where}.binary: a data source has binary attributes or categories, not both"),
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
    """Check that the global batch divides evenly among ranks and micro-batches.

    Raises:
        UserError: it does not. Names the next batch size that does.
    """
    micro_batches = config.engine.accumulate
    parts = world_size * micro_batches
    if config.batch_size % parts:
        factor = f" times engine.accumulate, {micro_batches}" if micro_batches > 1 else ""
        raise UserError(
            f"batch_size: {config.batch_size} is the global batch and must be a multiple of the "
            f"number of processes, {world_size}{factor}; "
            f"{parts * -(-config.batch_size // parts)} works"
        )


def describe(config: Config) -> str:
    """Describe engine, precision and schedule in a few words."""
    engine = config.engine
    words = [
        "DDP" if engine.name == "ddp" else f"ZeRO {engine.zero_stage}",
        config.precision,
        f"{config.schedule} schedule",
    ]
    if engine.accumulate > 1:
        words.append(f"{engine.accumulate} micro-batches")
    return ", ".join(words)


def to_dict(config: Config) -> dict[str, Any]:
    """Return plain values, as in YAML and JSON."""
    values = dataclasses.asdict(config)
    values["optim"]["betas"] = config.optim.betas and list(config.optim.betas)
    return values


def to_yaml(config: Config) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by their dotted names."""
    named: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, dict)
        named |= flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return named


def _may_change(name: str) -> bool:
    return name.startswith(FREE_FIELDS) or FREE_SOURCE_FIELDS.fullmatch(name) is not None


def check_resumable(saved: Config, config: Config, run: str) -> None:
    """Check that a run may continue with a configuration. Both configurations are resolved.

    Raises:
        UserError: a field that is fixed for a run differs. Names all such fields.
    """
    old, new = flat(to_dict(saved)), flat(to_dict(config))
    differences = [
        f"{name} was {old.get(name)}, is {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not _may_change(name)
    ]
    if differences:
        raise UserError(
            f"{run} was trained with another configuration ({'; '.join(differences)}): "
            "use the saved values to resume it, or another --run"
        )
