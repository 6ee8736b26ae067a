"""Time translation with a trained model against the literal way: a whole pass for each output.

    OMP_NUM_THREADS=2 python benchmarks/translate.py [--size 256] [--rounds 5]

Rows: one source in ten styles, and many sources in one style, by `Translator` and literally (F and
a whole pass of G, one output at a time, kernels fused in each pass); one source in one style by
PyTorch and by ONNX Runtime; peak memory of a video by its length. Cases alternate; ratios are
medians over rounds of literal / ours (ONNX: PyTorch / ONNX; memory: long / short). Weights are
random: they do not affect the time. The last line is one JSON object.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from inputs import model_of_size, starganv2_networks
from torch import Tensor

from stargan_dist.config import Config
from stargan_dist.console.progress import progress_bar
from stargan_dist.console.tables import format_table
from stargan_dist.data.batch import to_unit
from stargan_dist.data.labels import domain_labels
from stargan_dist.inference.model import TrainedModel
from stargan_dist.inference.translator import Translator
from stargan_dist.models.saved import SavedModel

DOMAINS = ["cat", "dog", "wild"]
STYLES = 10
Case = Callable[[], object]


def random_model(size: int) -> SavedModel:
    """Return StarGAN v2 at full width with random weights."""
    torch.manual_seed(0)
    networks = starganv2_networks(len(DOMAINS), model_of_size(size))
    tensors = {
        f"{letter}.{name}": tensor
        for letter, network in networks.items()
        if letter != "D"
        for name, tensor in network.state_dict().items()
    }
    config = Config(recipe="f", model=model_of_size(size))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="image size in pixels (default: 256)")
    parser.add_argument("--sources", type=int, default=64, help="of the second row (default: 64)")
    parser.add_argument("--rounds", type=int, default=5, help="of each case (default: 5)")
    args = parser.parse_args()
    saved = random_model(args.size)
    seconds = time_pairs(translation_cases(saved, args.sources), args.rounds)
    rows, ratios = [["row", "literal s", "ours s", "ratio"]], {}
    for name, pairs in seconds.items():
        ratios[name] = round(statistics.median(a / b for a, b in pairs), 3)
        medians = [f"{statistics.median(values):.2f}" for values in zip(*pairs, strict=True)]
        rows.append([name, *medians, f"{ratios[name]:.2f}"])
    print(format_table(rows, left=(0,)))
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
