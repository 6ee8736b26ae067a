"""The configuration of a run: typed, from defaults, YAML files and options; the last one wins.

`--config a.yaml --config b.yaml --optim.lr 2e-4`; `--print_config` prints the result. A file after
an option overrides it. The resolved configuration is written into the run folder, and a resumed run
must agree with it.
"""

from stargan_dist.config.fields import (
    CheckpointConfig,
    ClipConfig,
    Config,
    DataConfig,
    EngineConfig,
    EvaluationConfig,
    InitConfig,
    LossConfig,
    ModelConfig,
    MonitorConfig,
    OptimConfig,
    SourceConfig,
    StorageConfig,
)
from stargan_dist.config.origins import Origins, Request
from stargan_dist.config.parsing import from_dict, given, model_from_dict, parse
from stargan_dist.config.rules import check, check_world
from stargan_dist.config.values import (
    check_resumable,
    describe,
    differences,
    flat,
    to_dict,
    to_yaml,
)

__all__ = [
    "CheckpointConfig",
    "ClipConfig",
    "Config",
    "DataConfig",
    "EngineConfig",
    "EvaluationConfig",
    "InitConfig",
    "LossConfig",
    "ModelConfig",
    "MonitorConfig",
    "OptimConfig",
    "Origins",
    "Request",
    "SourceConfig",
    "StorageConfig",
    "check",
    "check_resumable",
    "check_world",
    "describe",
    "differences",
    "flat",
    "from_dict",
    "given",
    "model_from_dict",
    "parse",
    "to_dict",
    "to_yaml",
]
