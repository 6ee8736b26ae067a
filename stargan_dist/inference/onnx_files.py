"""Graphs as ONNX files."""

import warnings
from pathlib import Path
from typing import Any

import torch

from stargan_dist.errors import UserError


def save(program: Any, path: Path, inputs: tuple[str, ...], output: str) -> None:
    """Convert a torch.export program and write it as one ONNX file.

    Args:
        program: its inputs have the batch as first dimension.
        path: a local file.
        inputs: their names, in their order.
        output: its name.

    Raises:
        UserError: a package is missing.
    """
    _require_packages()
    batch = {0: "batch"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the common name of the first dimensions
        converted = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[*inputs],
            output_names=[output],
            dynamic_shapes=(tuple(batch for _ in inputs),),
            verbose=False,
        )
    assert converted is not None
    converted.save(str(path))


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("ONNX needs packages: pip install 'stargan_dist[onnx]'") from error
