"""Judge a run trained on the demo dataset against the factors that its images were drawn from.

    python experiments/demo_quality.py RUN [--checkpoint latest] [--images DIR] [--seed 0]

The judge is a pair of small networks, the probes. They learn from the real training images to read
the species (from grey images, hence blind to colour), the position of the head, and the colour of
the fur. They are tested on the validation images first; if they are too weak, the exit code is 1.
Then they measure translations of validation images. The last line is one JSON object with the
measures.
"""

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stargan_dist.console.progress import progress_bar
from stargan_dist.data.index import read_index
from stargan_dist.data.reader import ShardReader
from stargan_dist.data.split import load_split
from stargan_dist.errors import UserError, run_command
from stargan_dist.inference.model import TrainedModel

SIDE = 32  # px, the size of the probes' input; positions are in pixels of this size
CENTRE, FUR = slice(0, 2), slice(2, 5)  # columns of the factors: x, y in px; RGB in [0, 1]

STEPS, BATCH, PEAK_LR = 600, 32, 3e-3
MAX_SHIFT, MAX_BRIGHTNESS, MAX_NOISE = 3, 0.2, 0.2  # px; of [-1, 1]; standard deviation

SOURCES, OUTPUTS = 64, 8  # source images per pair of domains; outputs per source and guide

MIN_PROBE_ACCURACY, MAX_PROBE_POSE_ERROR = 0.99, 0.7
TARGETS = {
    "domain_accuracy_latent": (0.95, 1.0),
    "domain_accuracy_reference": (0.95, 1.0),
    "pose_error_px": (0.0, 2.0),
    "style_spread_ratio": (0.5, 1.5),
}
MEASURES = (*TARGETS, "reference_colour_error")


@dataclass(frozen=True)
class Truth:
    """Real images with their domains and factors.

    Attributes:
        images: (N, 3, H, H) in [-1, 1].
        labels: domains (N,).
        factors: (N, 5), see `CENTRE` and `FUR`.
        domains: names of the domains.
    """

    images: Tensor
    labels: Tensor
    factors: Tensor
    domains: list[str]

    def of_domain(self, label: int) -> Tensor:
        """Return the indices (n,) of a domain's images."""
        return (self.labels == label).nonzero().flatten()


class Probes(nn.Module):
    """Two small networks that read species and factors of images (B, 3, 32, 32) in [-1, 1].

    One classifies the species, from the luminance only. The other has two attention maps: the
    centre of the head is the mean position under the first map, and the fur has the mean colour
    under the second. So a colour that no real animal has is still read correctly.
    """

    def __init__(self, num_species: int) -> None:
        super().__init__()
        self.species = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(24, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(48, 96, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Dropout(0.2), nn.Linear(96 * 4 * 4, num_species),
        )  # fmt: skip
        self.maps = nn.Sequential(
            nn.Conv2d(3, 32, 4, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(),
            nn.Conv2d(48, 48, 3, padding=2, dilation=2), nn.ReLU(),
            nn.Conv2d(48, 2, 3, padding=1),
        )  # fmt: skip
        centres = torch.arange(SIDE // 2) * 2.0 + 1.0
        # (x, y) of each pixel of a flattened map.
        self.positions = torch.cartesian_prod(centres, centres).flip(1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores of the species (B, K) and the factors (B, 5)."""
        luminance = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        scores = self.species((images * luminance).sum(dim=1, keepdim=True))
        head, fur = self.maps(images).flatten(2).softmax(dim=2).unbind(dim=1)
        colours = F.avg_pool2d(images, 2).flatten(2) / 2 + 0.5
        centre, colour = head @ self.positions, torch.einsum("bp,bcp->bc", fur, colours)
        return scores, torch.cat([centre, colour], 1)

    @torch.no_grad()
    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Read the domains (...,) and the factors (..., 5) of images (..., 3, H, H)."""
        batch_shape = images.shape[:-3]
        scores, factors = self(shrink(images.flatten(0, -4).clamp(-1, 1)))
        return scores.argmax(dim=1).view(batch_shape), factors.view(*batch_shape, 5)


def shrink(images: Tensor) -> Tensor:
    """Resize images (N, 3, H, H) to the size of the probes' input."""
    return F.adaptive_avg_pool2d(images, SIDE)


def read_truth(shards: str, split: str, size: int, folder: Path) -> Truth:
    """Load a split with the factors of its images.

    Raises:
        UserError: `folder` has no factors, or those of other images.
    """
    loaded = load_split(ShardReader(shards, read_index(shards), split), size)
    records = read_factors(folder / "factors.jsonl")
    if not records.keys() >= set(loaded.paths):
        raise UserError(
            f"{folder / 'factors.jsonl'} does not belong to the images in {shards}: name the "
            "folder of the demo dataset that they were built from with --images"
        )
    factors = torch.tensor([learnt_factors(records[path]) for path in loaded.paths])
    return Truth(loaded.images.float() / 127.5 - 1, loaded.labels, factors, loaded.domains)


def read_factors(path: Path) -> dict[str, dict[str, Any]]:
    """Read the factors of every drawn image, by its file name.

    Raises:
        UserError: there is no such file.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: name the folder of the demo dataset with --images")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {record["file"]: record for record in records}


def learnt_factors(record: dict[str, Any]) -> list[float]:
    """Return the five factors that the probes learn: x, y in px, fur colour in [0, 1]."""
    return [record["x"] * SIDE, record["y"] * SIDE, *(value / 255 for value in record["fur"])]


def augment(images: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Degrade images (B, 3, 32, 32) as a generator might, and adjust their factors (B, 5).

    The batch is shifted as a whole. Each image has its own amount of blur, noise and brightness.
    """
    shift = torch.randint(-MAX_SHIFT, MAX_SHIFT + 1, (2,))
    left, top = (MAX_SHIFT - shift).tolist()
    padded = F.pad(images, [MAX_SHIFT] * 4, mode="replicate")
    images = padded[:, :, top : top + SIDE, left : left + SIDE]
    blur, noise, brightness = torch.rand(3, len(images), 1, 1, 1)
    images = images.lerp(F.avg_pool2d(images, 3, 1, 1, count_include_pad=False), blur)
    brightness = (2 * brightness - 1) * MAX_BRIGHTNESS
    images = images + brightness + MAX_NOISE * noise * torch.randn_like(images)
    # Colours are in [0, 1], a range half as wide as that of the images.
    lighter = brightness.view(-1, 1).expand(-1, 3) / 2
    return images, factors + torch.cat([shift.expand(len(images), 2), lighter], dim=1)


def train_probes(train: Truth, steps: int = STEPS, name: str = "probes") -> Probes:
    """Train both probes together on the training images; `name` is for the progress line."""
    probes, small = Probes(len(train.domains)), shrink(train.images)
    optimizer = torch.optim.AdamW(probes.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps)
    progress = progress_bar(steps, "steps", description=f"training {name}")
    for _ in range(steps):
        chosen = torch.randint(len(small), (BATCH,))
        images, factors = augment(small[chosen], train.factors[chosen])
        scores, predicted = probes(images)
        # An error of one pixel counts as much as a tenth of a colour's range.
        pose = F.smooth_l1_loss(predicted[:, CENTRE], factors[:, CENTRE])
        colour = F.smooth_l1_loss(10 * predicted[:, FUR], 10 * factors[:, FUR])
        optimizer.zero_grad()
        (F.cross_entropy(scores, train.labels[chosen]) + pose + colour).backward()
        optimizer.step()
        schedule.step()
        progress.update(1)
    progress.close()
    return probes.eval()


def check_probes(probes: Probes, held_out: Truth) -> None:
    """Print how well the probes read held-out images.

    Raises:
        SystemExit: not well enough to judge by.
    """
    labels, factors = probes.read(held_out.images)
    accuracy = (labels == held_out.labels).float().mean().item()
    pose_error = distance(factors, held_out.factors, CENTRE).mean().item()
    colour_error = distance(factors, held_out.factors, FUR).mean().item()
    print(f"probes on {len(labels)} validation images: accuracy {accuracy:.4f},", end=" ")
    print(f"pose error {pose_error:.3f} px, colour error {colour_error:.4f}")
    if accuracy < MIN_PROBE_ACCURACY or pose_error > MAX_PROBE_POSE_ERROR:
        required = f"accuracy {MIN_PROBE_ACCURACY} and pose error {MAX_PROBE_POSE_ERROR} px"
        raise SystemExit(f"the probes are too weak to judge by: {required} are required")


def distance(a: Tensor, b: Tensor, columns: slice) -> Tensor:
    """Return the Euclidean distance (...,) of factors (..., 5) in the given columns."""
    return torch.linalg.vector_norm(a[..., columns] - b[..., columns], dim=-1)


def colour_spread(factors: Tensor) -> Tensor:
    """Return the root of the total variance over n of the fur colours in factors (n, ..., 5)."""
    return factors[..., FUR].var(dim=0).sum(dim=-1).sqrt()


@torch.no_grad()
def judge_pair(
    translator: TrainedModel, probes: Probes, val: Truth, source: int, target: int
) -> dict[str, float]:
    """Translate from one domain to another, `OUTPUTS` times by each guide, and measure.

    Args:
        source: number of the domain in `val`.
        target: the same.
    """
    sources, targets = val.of_domain(source), val.of_domain(target)
    sources = sources[torch.randperm(len(sources))[:SOURCES]]
    references = targets[torch.randint(len(targets), (OUTPUTS, len(sources)))]
    latents = torch.randn(OUTPUTS, len(sources), translator.config.model.latent_dim)
    y_trg = translator.domains.index(val.domains[target])
    x, y = val.images[sources], torch.full_like(sources, y_trg)
    outputs = [torch.stack([translator.from_latents(x, y, z) for z in latents])]
    if translator.guided_by_references:
        guided = [translator.from_references(x, y, val.images[r]) for r in references]
        outputs.append(torch.stack(guided))
    labels, factors = probes.read(torch.stack(outputs))  # (guides, OUTPUTS, sources, ...)
    pose_error = distance(factors, val.factors[sources], CENTRE)
    measures = {
        "domain_accuracy_latent": (labels[0] == target).float(),
        "pose_error_px": pose_error,
        "pose_error_latent_px": pose_error[0],
        "style_spread_ratio": colour_spread(factors[0]) / colour_spread(val.factors[targets]),
    }
    if translator.guided_by_references:
        measures |= {
            "domain_accuracy_reference": (labels[1] == target).float(),
            "reference_colour_error": distance(factors[1], val.factors[references], FUR),
            "chance_colour_error": distance(factors[1], val.factors[shuffle(references)], FUR),
        }
    return {name: values.mean().item() for name, values in measures.items()}


def judge(translator: TrainedModel, probes: Probes, val: Truth) -> dict[str, float]:
    """Return the means of the measures over every ordered pair of the translator's domains."""
    domains = [val.domains.index(name) for name in translator.domains]
    pairs = itertools.permutations(domains, 2)
    measures = [judge_pair(translator, probes, val, source, target) for source, target in pairs]
    return {name: sum(m[name] for m in measures) / len(measures) for name in measures[0]}


def shuffle(table: Tensor) -> Tensor:
    """Permute the entries of a tensor at random, over all its dimensions."""
    return table.flatten()[torch.randperm(table.numel())].view_as(table)


def report(measures: dict[str, float]) -> None:
    """Print a table for people, then one line of JSON for programs.

    Measures by references are missing for a translator that references do not guide.
    """
    names = [name for name in MEASURES if name in measures]
    for name in names:
        if name in TARGETS:
            low, high = TARGETS[name]
            met = "met" if low <= measures[name] <= high else "NOT MET"
            verdict = f"target {low:g} to {high:g}: {met}"
        else:
            verdict = f"(shuffled references: {measures['chance_colour_error']:.3f})"
        print(f"{name:<26} {measures[name]:.3f}  {verdict}")
    print(json.dumps({name: measures[name] for name in names}))


def prepare(shards: str, size: int, images: Path | None = None) -> tuple[Probes, Truth]:
    """Train and test the probes on a dataset; returns them and the validation images.

    Args:
        shards: folder or URL of the demo dataset's shards.
        size: of the validation images, px.
        images: folder of factors.jsonl; None: beside the images that the shards were built from.

    Raises:
        SystemExit: the probes are too weak.
    """
    folder = images or Path(read_index(shards).source).parent
    train, val = (read_truth(shards, split, size, folder) for split in ("train", "val"))
    probes = train_probes(train)
    check_probes(probes, val)
    return probes, val


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN", help="folder or URL of the run")
    parser.add_argument(
        "--checkpoint", default="latest", help="latest, best or a step (default: latest)"
    )
    parser.add_argument(
        "--images",
        type=Path,
        help="folder of the demo dataset, with factors.jsonl (default: as recorded in the shards)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the probes, latents and references (default: 0)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train and test the probes, then judge every ordered pair of domains."""
    args = parse(argv)
    torch.manual_seed(args.seed)
    translator = TrainedModel.load(args.run, args.checkpoint)
    shards, size = translator.config.data.shards, translator.config.model.image_size
    probes, val = prepare(shards, size, args.images)
    report(judge(translator, probes, val))


if __name__ == "__main__":
    run_command(main)
