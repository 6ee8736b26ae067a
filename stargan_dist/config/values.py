"""A configuration as plain values and as text, and which values a resumed run may change."""

import dataclasses
import re
from typing import Any

import yaml

from stargan_dist.config.fields import Config
from stargan_dist.errors import UserError

# Fields that may change when a run is resumed: none of them changes the resulting parameters.
FREE_FIELDS = (
    "run", "steps", "checkpoint.", "engine.", "evaluation.", "monitor.", "storage.", "data.shards",
    "data.workers", "data.ahead_mib", "data.start_method", "data.cache", "data.on_bad_shard",
    "data.max_skipped",
    "optim.on_nonfinite", "optim.max_nonfinite", "model.landmarks",
)  # fmt: skip
FREE_SOURCE_FIELDS = re.compile(r"data\.sources\.[\w-]+\.shards")


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
    if found := differences(saved, config):
        raise UserError(
            f"{run} was trained with another configuration ({'; '.join(found)}): "
            "use the saved values to resume it, or another --run"
        )


def differences(saved: Config, config: Config) -> list[str]:
    """Return the fields that are fixed for a run and differ, with both values."""
    old, new = flat(to_dict(saved)), flat(to_dict(config))
    return [
        f"{name} was {old.get(name)}, is {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not _may_change(name)
    ]
