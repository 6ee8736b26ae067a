"""The software and hardware of a run, for RUN/environment.json."""

import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "torch", "torchvision", "accelerate", "deepspeed", "webdataset", "fsspec", "numpy", "pillow",
)  # fmt: skip


def describe_environment(world_size: int, device: torch.device) -> dict[str, Any]:
    """Return versions, git commit, command and world of this process."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in ("stargan_dist", *PACKAGES)},
        "git_commit": _git_commit(),
        "command": sys.argv,
        "world_size": world_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch_threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Return the commit of the checkout that holds the package, with + if files were changed."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    try:
        return subprocess.run(
            [*command, "--abbrev=40", "--exclude=*"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory: allocated on the GPU, or resident of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
