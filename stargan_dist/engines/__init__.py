"""Engines: turn losses into optimizer steps, on any number of processes."""

from stargan_dist.config import Config
from stargan_dist.distributed.world import World
from stargan_dist.engines.base import Engine, TrainedParts
from stargan_dist.engines.ddp import DDP
from stargan_dist.errors import UserError
from stargan_dist.launch.deepspeed_settings import check_settings


def check_engine(config: Config, world_size: int) -> None:
    """Check that the engine of a configuration is available on this machine, and its settings.

    Raises:
        UserError: DeepSpeed is not installed, or its settings file is not usable or has other
            batch sizes.
    """
    if config.engine.name == "deepspeed":
        try:
            from stargan_dist.engines import zero  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"engine.name: deepspeed cannot be imported ({error}); "
                "pip install 'stargan_dist[deepspeed]', or use --engine.name ddp"
            ) from error
        check_settings(config, world_size)


def make_engine(config: Config, parts: TrainedParts, world: World) -> Engine:
    """Build the engine of a configuration for the parts that are trained."""
    if config.engine.name == "deepspeed" and config.engine.zero_stage > 0:
        from stargan_dist.engines.zero import Zero  # its import takes seconds

        return Zero(parts, config, world)
    return DDP(parts, config, world)
