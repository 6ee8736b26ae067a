"""Engines: turn losses into optimizer steps, on any number of processes."""

from stargan_dist.config import Config
from stargan_dist.distributed.world import World
from stargan_dist.engines.base import Engine, TrainedParts
from stargan_dist.engines.ddp import DDP
from stargan_dist.errors import UserError


def check_engine(config: Config) -> None:
    """Check that the engine of a configuration is available on this machine.

    Raises:
        UserError: DeepSpeed is not installed, or its settings file is not usable.
    """
    if config.engine.name == "deepspeed":
        try:
            from stargan_dist.engines import zero
        except ImportError as error:
            raise UserError(
                f"engine.name: deepspeed cannot be imported ({error}); "
                "pip install 'stargan_dist[deepspeed]', or use --engine.name ddp"
            ) from error
        zero.read_settings(config.engine.deepspeed_config)


def make_engine(config: Config, parts: TrainedParts, world: World) -> Engine:
    """Build the engine of a configuration for the parts that are trained."""
    if config.engine.name == "deepspeed" and config.engine.zero_stage > 0:
        from stargan_dist.engines.zero import Zero  # its import takes seconds

        return Zero(parts, config, world)
    return DDP(parts, config, world)
