"""Engines: turn losses into optimizer steps, on any number of processes."""

from stargan_dist.config import Config
from stargan_dist.distributed.world import World
from stargan_dist.engines.base import Engine, LossScale, TrainedParts
from stargan_dist.engines.ddp import DDP
from stargan_dist.engines.deepspeed_settings import check_settings
from stargan_dist.errors import UserError


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
    clip = config.optim.clip
    scaled = config.precision == "float16"
    loss_scales = {name: LossScale(world.device) for name in parts.loss_modules if scaled}
    if config.engine.name == "deepspeed":
        from stargan_dist.engines.zero import Zero  # its import takes seconds

        micro_batch_size = config.batch_size // world.size // config.engine.accumulate
        return Zero(parts, clip, loss_scales, world, config.engine, micro_batch_size)
    return DDP(parts, clip, loss_scales, world)
