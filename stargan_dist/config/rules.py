"""Rules of a configuration that the types of single fields do not express."""

import json
import re

from stargan_dist.config.fields import Config, DataConfig, SourceConfig
from stargan_dist.config.values import flat, to_dict
from stargan_dist.errors import UserError, is_utf8, printable

# Schedules of objectives/schedules.py in which each step of the generator is that of all guides.
STEPS_OF_ALL_GUIDES = ("summed", "joint", "joint_lazy", "sparse")

MAX_ERROR = 1000  # characters of an error, which may show a value of a file

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
        (all(r is None or r > 0 for r in (optim.lr, optim.lr_mapping, optim.lr_content)),
         "optim.lr, optim.lr_mapping, optim.lr_content: must be positive"),
        (optim.ema is None or 0 <= optim.ema < 1, "optim.ema: must be in [0, 1)"),
        (all(0 <= beta < 1 for beta in optim.betas or ()), "optim.betas: each must be in [0, 1)"),
        ((optim.weight_decay or 0) >= 0, "optim.weight_decay: must not be negative; 0 is off"),
        (config.model.w_hpf >= 0, "model.w_hpf: must not be negative; 0 is off"),
        (not optim.decay_end or 0 <= (optim.decay_begin or 0) < optim.decay_end,
         "optim.decay_begin: must not be negative, and must be less than optim.decay_end"),
        (optim.decay_end is None or optim.decay_end or not optim.decay_begin,
         "optim.decay_begin: has no effect where optim.decay_end is 0; set both or neither"),
        ((optim.halve_every or 0) >= 0, "optim.halve_every: must not be negative; 0 is never"),
        (not (optim.halve_every and optim.decay_end),
         "optim.halve_every: learning rates are halved or decay to 0 at optim.decay_end, not both; "
         "set one of the two to 0"),
        (not optim.decay_end or config.steps <= optim.decay_end,
         f"steps: learning rates reach 0 at step {optim.decay_end} (optim.decay_end); "
         "reduce steps or raise optim.decay_end"),
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
         "engine.channels_last: DeepSpeed (engine.name) has a memory layout of its own; leave it "
         "at auto"),
        (not (zero3 and engine.compile),
         "engine.compile: ZeRO 3 shards weights between modules, which breaks compiled graphs; "
         "use a lower engine.zero_stage"),
        (zero3 or not engine.offload_parameters,
         "engine.offload_parameters: needs DeepSpeed at stage 3 (--engine.zero_stage 3)"),
        (deepspeed or not engine.deepspeed_config,
         "engine.deepspeed_config: needs --engine.name deepspeed"),
        (not deepspeed or config.precision not in ("float16", "float64"),
         "precision: DeepSpeed (engine.name) trains in float32 or bfloat16, not "
         f"{config.precision}"),
        (not zero3 or config.schedule in STEPS_OF_ALL_GUIDES,
         "engine.zero_stage: 3 needs --schedule summed. A step of G alone would apply the "
         "gradients of F and E that stage 3 keeps once more"),
        (not zero3 or not any((clip.G, clip.F, clip.E)),
         "optim.clip: ZeRO 3 has one optimizer for G, F and E, and cannot clip each network; set "
         "optim.clip.D and optim.clip.C alone"),
    ]  # fmt: skip


def _source_rules(data: DataConfig) -> list[Rule]:
    rules: list[Rule] = [
        (data.shards or data.sources,
         "data.shards: name the shards (--data.shards URL), or data.sources"),
        (not (data.shards and data.sources),
         "data.shards: names a single dataset; leave it empty where data.sources is given"),
        (not (data.pair and data.sources),
         "data.pair: names two domains of data.shards; leave it empty where data.sources is given"),
        (not data.pair or len(data.pair) == len({*data.pair}) == 2,
         "data.pair: name two different domains, such as [cat, dog], or leave it empty"),
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


def check_world(config: Config, world_size: int, sources_together: int = 1) -> None:
    """Check that the global batch divides evenly among ranks and micro-batches.

    Args:
        sources_together: consecutive sources that a micro-batch does not separate.

    Raises:
        UserError: it does not. Names the next batch size that does.
    """
    micro_batches = config.engine.accumulate
    parts = world_size * micro_batches * sources_together
    if config.batch_size % parts:
        factor = f" times engine.accumulate, {micro_batches}" if micro_batches > 1 else ""
        pairs = f", times {sources_together} for pairs" if sources_together > 1 else ""
        raise UserError(
            f"batch_size: {config.batch_size} is the global batch and must be a multiple of the "
            f"number of processes, {world_size}{factor}{pairs}; "
            f"{parts * -(-config.batch_size // parts)} works"
        )
