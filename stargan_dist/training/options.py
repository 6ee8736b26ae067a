"""The configuration of a training from all sources."""

from collections.abc import Iterable, Sequence
from typing import Any

from stargan_dist import config as configs
from stargan_dist import storage
from stargan_dist.config import Config, Origins, Request, StorageConfig
from stargan_dist.config.origins import decide
from stargan_dist.config.parsing import PROGRAM


def configure(
    argv: Sequence[str] | None = None, prog: str = PROGRAM, requests: Iterable[Request] = ()
) -> tuple[Config, Origins]:
    """Build the configuration from a command line, a DeepSpeed file and what the launcher requests.

    Raises:
        UserError: unknown key, wrong type or invalid value; the DeepSpeed file cannot be read; the
            launcher or the file requests what the training does not support.
    """
    own = configs.given(argv, prog)
    launched = decide(requests, configs.flat(own))
    with launched.in_errors():
        origins = decide([*_file_requests(own, launched), *requests], configs.flat(own))
    with origins.in_errors():
        return configs.parse(argv, prog, origins.values), origins


def _file_requests(own: dict[str, Any], launched: Origins) -> list[Request]:
    """Return the requests of the DeepSpeed file, if there is one."""
    options = launched.values | configs.flat(own)
    path = options.get("engine.deepspeed_config")
    if not path or options.get("engine.name") != "deepspeed":
        return []
    from stargan_dist.launch.deepspeed_settings import read_requests  # imports torch

    storage.configure(StorageConfig(**own.get("storage", {})))
    return read_requests(path)
