"""Time translation with a trained model against the literal way: a whole pass for each output.

    OMP_NUM_THREADS=2 python benchmarks/translate.py [--size 256] [--rounds 5]

Rows: one source in ten styles, and many sources in one style, literally (F and a whole pass of G,
one output at a time, kernels fused in each pass) and by `Translator`; one source in one style by
`Translator` and by ONNX Runtime. Cases alternate; ratios of first to second are medians over
rounds. Weights are random: they do not affect the time. Last, the peak memory of rendering 600
frames of a video by that of 60. The last line is one JSON object.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from inputs import model_of_size, starganv2_networks
from torch import Tensor

from stargan_dist.config import Config, ModelConfig
from stargan_dist.console.progress import progress_bar
from stargan_dist.console.tables import format_table
from stargan_dist.data.batch import to_unit
from stargan_dist.data.labels import domain_labels
from stargan_dist.inference import graphs, videos
from stargan_dist.inference.model import TrainedModel
from stargan_dist.inference.translator import Translator
from stargan_dist.inference.video_files import write_video
from stargan_dist.inference.videos import Motion
from stargan_dist.models.saved import SavedModel

DOMAINS = ["cat", "dog", "wild"]
STYLES = 10
Case = Callable[[], object]


def random_model(sizes: ModelConfig) -> SavedModel:
    """Return StarGAN v2 with random weights."""
    torch.manual_seed(0)
    networks = starganv2_networks(len(DOMAINS), sizes)
    tensors = {
        f"{letter}.{name}": tensor
        for letter, network in networks.items()
        if letter != "D"
        for name, tensor in network.state_dict().items()
    }
    config = Config(recipe="f", model=sizes)
    return SavedModel("random", config, domain_labels(DOMAINS), 0, tensors).check()


@torch.no_grad()
def literal(model: TrainedModel, sources: Tensor, seeds: list[int]) -> list[Tensor]:
    """Translate sources, uint8 (N, 3, H, H), each by a whole pass for each seed."""
    outputs, y = [], torch.tensor([1])
    for source in sources:
        x = to_unit(source[None], model.dtype)
        for seed in seeds:
            z = torch.randn(
                1, model.config.model.latent_dim, generator=torch.Generator().manual_seed(seed)
            )
            outputs.append(model.G(x, model.condition_on_latents(z, y)))
    return outputs


def translation_cases(saved: SavedModel, count: int) -> dict[str, tuple[Case, Case]]:
    """Return the literal way and ours of each row."""
    plain, ours = TrainedModel.from_saved(saved), Translator(saved)
    size = ours.image_size
    sources = torch.randint(256, (count, 3, size, size), dtype=torch.uint8)
    seeds = list(range(STYLES))
    return {
        "ten_styles_ratio": (
            lambda: literal(plain, sources[:1], seeds),
            lambda: ours.translate(sources[0], "dog", seed=seeds),
        ),
        "many_sources_ratio": (
            lambda: literal(plain, sources, [0]),
            lambda: ours.translate(sources, "dog", seed=0),
        ),
    }


def time_pairs(cases: dict[str, tuple[Case, Case]], rounds: int) -> dict[str, list[list[float]]]:
    """Return the seconds of both cases of each row in each round, without the first round."""
    seconds: dict[str, list[list[float]]] = {name: [] for name in cases}
    progress = progress_bar((1 + rounds) * len(cases), "pairs", description="timing")
    for _ in range(1 + rounds):
        for name, pair in cases.items():
            seconds[name].append([_seconds(case) for case in pair])
            progress.update(1)
    progress.close()
    return {name: pairs[1:] for name, pairs in seconds.items()}


def _seconds(case: Case) -> float:
    start = time.perf_counter()
    case()
    return time.perf_counter() - start


def onnx_cases(saved: SavedModel, folder: Path) -> dict[str, tuple[Case, Case]]:
    """Return PyTorch and ONNX Runtime for one source in one style."""
    import onnxruntime

    model, path = graphs.inference_model(saved), folder / "translate.onnx"
    graphs.save_graph(model, "translate", path, "onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    ours, size = Translator(saved), saved.config.model.image_size
    source = torch.randint(256, (3, size, size), dtype=torch.uint8)
    inputs = {
        "image": to_unit(source[None]).numpy(),
        "latent": np.zeros((1, saved.spec.config.model.latent_dim), np.float32),
        "label": np.ones(1, np.int64),
    }
    return {
        "onnx_ratio": (
            lambda: ours.translate(source, "dog", seed=0),
            lambda: session.run(None, inputs),
        )
    }


def render_video(frames: int) -> None:
    """Write a video of one source at 256 px with narrow networks; print the peak memory in MiB."""
    config = model_of_size(256, base_width=4, max_width=16, mapping_dim=16)
    translator = Translator(random_model(config))
    sources = [translator.fitted(torch.zeros(3, 256, 256, dtype=torch.uint8))]
    plan = videos.plan(2, Motion(frames=frames - 1))
    images = videos.render(translator, sources, translator.conditioning("dog", seed=[0, 1]), plan)
    with tempfile.TemporaryDirectory() as folder:
        write_video(f"{folder}/video.mp4", images, len(plan), Fraction(25))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


def video_memory_ratio() -> float:
    """Return the peak memory of a process that renders 600 frames, by that of 60."""
    peaks = []
    for frames in (600, 60):
        command = [sys.executable, __file__, "--render", str(frames)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        peaks.append(float(done.stdout))
    return round(peaks[0] / peaks[1], 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="image size in pixels (default: 256)")
    parser.add_argument("--sources", type=int, default=64, help="of the second row (default: 64)")
    parser.add_argument("--rounds", type=int, default=5, help="of each case (default: 5)")
    parser.add_argument("--render", type=int, metavar="FRAMES", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.render:
        render_video(args.render)
        return
    saved = random_model(model_of_size(args.size))
    with tempfile.TemporaryDirectory() as folder:
        cases = translation_cases(saved, args.sources) | onnx_cases(saved, Path(folder))
        seconds = time_pairs(cases, args.rounds)
    rows, ratios = [["row", "first s", "second s", "ratio"]], {}
    for name, pairs in seconds.items():
        ratios[name] = round(statistics.median(a / b for a, b in pairs), 3)
        medians = [f"{statistics.median(values):.2f}" for values in zip(*pairs, strict=True)]
        rows.append([name, *medians, f"{ratios[name]:.2f}"])
    print(format_table(rows, left=(0,)))
    print(json.dumps(ratios | {"video_memory_ratio": video_memory_ratio()}))


if __name__ == "__main__":
    main()
