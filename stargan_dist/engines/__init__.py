"""What turns losses into steps, on any number of processes."""

from stargan_dist.config import Config
from stargan_dist.distributed.world import World
from stargan_dist.engines.base import Engine, LossScale, TrainedParts
from stargan_dist.engines.ddp import DDP
from stargan_dist.errors import UserError


def check_engine(config: Config) -> None:
    """Raises UserError if the engine that a configuration wants cannot be had here."""
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
    """The engine that a configuration names, around what is trained."""
    clip = config.optim.clip
    scaled = config.precision == "float16"
    scales = {side: LossScale(world.device) for side in parts.sides if scaled}
    if config.engine.name == "deepspeed":
        from stargan_dist.engines.zero import Zero  # its import takes seconds

        rank_batch = config.batch_size // world.size // config.engine.accumulate
        return Zero(parts, clip, scales, world, config.engine, rank_batch)
    return DDP(parts, clip, scales, world)
