"""Settings of `accelerate launch`, its configuration files and `accelerate config`.

The launcher passes them to the processes in environment variables. Each of them has one meaning: it
stands for options of the training, is refused, or changes nothing. docs/engines.md has the users'
table.
"""

from collections.abc import MutableMapping

from stargan_dist.config.origins import LAUNCHER, UNSET, Request, Setting, find, lookup

ENGINE = ("engine.name",)
COMPILE = ("engine.compile",)
CLIP = tuple(f"optim.clip.{network}" for network in "GFEDC")
OFFLOAD = lookup({"cpu": True})
UNSUPPORTED = lookup({})
NOTHING = ("",)  # no option of the training can override it
NO_NVME = "the training offloads to host memory alone; use cpu"
PARALLEL = "the training is data parallel; use --engine.name ddp, or deepspeed"

SETTINGS = (
    # All launchers.
    Setting("ACCELERATE_MIXED_PRECISION", "--mixed_precision", ("precision",),
            lookup({"bf16": "bfloat16", "fp16": "float16"}),
            "the training does not compute in 8 bits; use --precision bfloat16"),
    *(Setting(f"ACCELERATE_DYNAMO_{key}", f"--dynamo_{key.lower()}", COMPILE,
              lookup({"default": None}),
              "the training compiles for fixed shapes, in its own way; use --engine.compile true, "
              "or false")
      for key in ("MODE", "USE_FULLGRAPH", "USE_DYNAMIC", "USE_REGIONAL_COMPILATION")),
    Setting("ACCELERATE_DYNAMO_BACKEND", "--dynamo_backend", COMPILE, lookup({"inductor": True}),
            "the training compiles with inductor; use --engine.compile true, or false"),
    # The DeepSpeed launcher. It alone passes gradient accumulation on.
    Setting("ACCELERATE_USE_DEEPSPEED", "--use_deepspeed", ENGINE, lookup({"true": "deepspeed"}),
            "must be true or false", needs_deepspeed=True),
    Setting("ACCELERATE_DEEPSPEED_ZERO_STAGE", "--zero_stage", ("engine.zero_stage",), int,
            "must be 0, 1, 2 or 3", needs_deepspeed=True),
    # Accelerate's default is 2, that of engine.zero_stage 1.
    Setting("ACCELERATE_USE_DEEPSPEED", "--use_deepspeed", ("engine.zero_stage",),
            lookup({"true": 2}), needs_deepspeed=True, is_default=True),
    Setting("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "--offload_optimizer_device",
            ("engine.offload_optimizer",), OFFLOAD, NO_NVME, needs_deepspeed=True),
    Setting("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "--offload_param_device",
            ("engine.offload_parameters",), OFFLOAD, NO_NVME, needs_deepspeed=True),
    Setting("ACCELERATE_DEEPSPEED_CONFIG_FILE", "--deepspeed_config_file",
            ("engine.deepspeed_config",), str, needs_deepspeed=True),
    Setting("ACCELERATE_GRADIENT_CLIPPING", "--gradient_clipping", CLIP, float,
            "must be a number", needs_deepspeed=True),
    Setting("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "--gradient_accumulation_steps",
            ("engine.accumulate",), lambda text: None if text == "1" else int(text),
            "must be a whole number", needs_deepspeed=True,
            note=", which divides batch_size here"),
    Setting("ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES", "--deepspeed_moe_layer_cls_names", NOTHING,
            UNSUPPORTED, "the networks have no mixture of experts; launch without it",
            needs_deepspeed=True),
    # Other ways to distribute a training, and other machines.
    Setting("ACCELERATE_USE_FSDP", "--use_fsdp", ENGINE, UNSUPPORTED,
            "the training shards weights with ZeRO 3; use --engine.name deepspeed "
            "--engine.zero_stage 3 --schedule summed"),
    Setting("ACCELERATE_USE_MEGATRON_LM", "--use_megatron_lm", ENGINE, UNSUPPORTED, PARALLEL),
    Setting("ACCELERATE_USE_PARALLELISM_CONFIG", "--use_parallelism_config", ENGINE, UNSUPPORTED,
            PARALLEL),
    *(Setting(key, name, NOTHING, UNSUPPORTED,
              "the training runs on GPUs and CPUs; launch it on a machine that has them")
      for key, name in (("XLA_USE_BF16", "--tpu"), ("XLA_DOWNCAST_BF16", "--downcast_bf16"),
                        ("ACCELERATE_IN_TPU_POD", "--tpu_cluster"),
                        ("ACCELERATE_USE_SAGEMAKER", "on SageMaker"))),
)  # fmt: skip

# No meaning here: networks are built whole, and checkpoints hold them whole, in float32; the rest
# describes settings that the table refuses.
IGNORED = (
    "ACCELERATE_CONFIG_DS_FIELDS",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL",
    "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE",
    "ACCELERATE_USE_IPEX",  # of former versions
)
IGNORED_PREFIXES = ("ACCELERATE_FP8_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")
LEFT_TO_ACCELERATE = ("ACCELERATE_CPU_AFFINITY", "ACCELERATE_DEBUG_MODE")
ON_CPU = "ACCELERATE_USE_CPU"
SIGN = "ACCELERATE_MIXED_PRECISION"  # of the launcher, for `launcher.find_launcher`


def take_settings(environment: MutableMapping[str, str]) -> list[Request]:
    """Find the launcher's settings in the environment, and remove them from it.

    Accelerate reads them again otherwise. If the launcher requests CPUs, GPUs are hidden: call this
    before CUDA is initialised.
    """
    requests = find(SETTINGS, environment, LAUNCHER)
    if environment.get(ON_CPU, "").lower() not in UNSET:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    names = {ON_CPU, *IGNORED, *(setting.key for setting in SETTINGS)}
    for name in [*environment]:
        if name == SIGN:
            environment[name] = "no"
        elif name in names or name.startswith(IGNORED_PREFIXES):
            del environment[name]
    return requests
