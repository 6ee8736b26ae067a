"""Judges a run trained on the demo data set against the factors its images were drawn from.

    python experiments/demo_quality.py RUN [--checkpoint latest] [--images DIR] [--seed 0]

Two small networks, the probes, learn from the real training images to tell the species (from grey
images, so blind to colour), where the head is, and which colour the fur has. They must prove
themselves on the validation images; if they do not, the exit status is 1. Then they measure
translations of validation images. The last line printed is one JSON object with the measures.
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

from stargan_dist.data.index import read_index
from stargan_dist.data.reader import ShardReader, load_split
from stargan_dist.errors import UserError, run_command
from stargan_dist.inference.translator import Translator

SIDE = 32  # what the probes look at: the unit of all positions is one of 32 pixels
CENTRE, FUR = slice(0, 2), slice(2, 5)  # the columns of the factors: x, y in px; RGB in 0 to 1

STEPS, BATCH, PEAK_LR = 600, 32, 3e-3
MAX_SHIFT, MAX_BRIGHTNESS, MAX_NOISE = 3, 0.2, 0.2  # px; added to -1 to 1; standard deviation

SOURCES, OUTPUTS = 64, 8  # source images for each pair of domains, and outputs for each source

MIN_PROBE_ACCURACY, MAX_PROBE_POSE_ERROR = 0.99, 0.7
WANTED = {
    "domain_accuracy_latent": (0.95, 1.0),
    "domain_accuracy_reference": (0.95, 1.0),
    "pose_error_px": (0.0, 2.0),
    "style_spread_ratio": (0.5, 1.5),
}
MEASURES = (*WANTED, "reference_colour_error")


@dataclass(frozen=True)
class Truth:
    """Real images (N, 3, H, H) in [-1, 1], their domains (N,) and their factors (N, 5)."""

    images: Tensor
    labels: Tensor
    factors: Tensor
    domains: list[str]

    def of_domain(self, label: int) -> Tensor:
        """Find the positions (n,) of a domain's images."""
        return (self.labels == label).nonzero().flatten()


class Probes(nn.Module):
    """Two small networks that read images (B, 3, 32, 32) in [-1, 1].

    One tells the species, from the luminance only. The other has two maps that say where to look:
    the centre of the head is the mean position under the first map, and the fur has the mean
    colour under the second. So a colour that no real animal has is still read as it is.
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
        middles = torch.arange(SIDE // 2) * 2.0 + 1.0
        self.places = torch.cartesian_prod(middles, middles).flip(1)  # x, y in the order of a map

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores of the species (B, K) and the factors (B, 5)."""
        luminance = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        scores = self.species((images * luminance).sum(dim=1, keepdim=True))
        head, fur = self.maps(images).flatten(2).softmax(dim=2).unbind(dim=1)
        colours = F.avg_pool2d(images, 2).flatten(2) / 2 + 0.5
        return scores, torch.cat([head @ self.places, torch.einsum("bp,bcp->bc", fur, colours)], 1)

    @torch.no_grad()
    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Read the domains (...,) and the factors (..., 5) of images (..., 3, H, H)."""
        many = images.shape[:-3]
        scores, factors = self(shrink(images.flatten(0, -4).clamp(-1, 1)))
        return scores.argmax(dim=1).view(many), factors.view(*many, 5)


def shrink(images: Tensor) -> Tensor:
    """Bring images (N, 3, H, H) to the size that the probes look at."""
    return F.adaptive_avg_pool2d(images, SIDE)


def read_truth(shards: str, split: str, size: int, folder: Path) -> Truth:
    """Load a split, with the factors of its images."""
    loaded = load_split(ShardReader(shards, read_index(shards), split), size)
    rows = read_rows(folder / "factors.jsonl")
    if not rows.keys() >= set(loaded.paths):
        raise UserError(f"{folder / 'factors.jsonl'} does not belong to the images in {shards}")
    table = torch.tensor([factors_of(rows[path]) for path in loaded.paths])
    return Truth(loaded.images.float() / 127.5 - 1, loaded.labels, table, loaded.domains)


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Read all that is known of each image, by its file name."""
    if not path.is_file():
        raise UserError(f"no {path}: give the folder of the demo data set with --images")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["file"]: row for row in rows}


def factors_of(row: dict[str, Any]) -> list[float]:
    """Take the five factors that the probes learn."""
    return [row["x"] * SIDE, row["y"] * SIDE, *(value / 255 for value in row["fur"])]


def augment(images: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Spoil images (B, 3, 32, 32) as a generator might, and keep their factors (B, 5) true.

    One shift for the batch; for each image an amount of blur, of noise and of brightness.
    """
    shift = torch.randint(-MAX_SHIFT, MAX_SHIFT + 1, (2,))
    left, top = (MAX_SHIFT - shift).tolist()
    padded = F.pad(images, [MAX_SHIFT] * 4, mode="replicate")
    images = padded[:, :, top : top + SIDE, left : left + SIDE]
    blur, noise, brightness = torch.rand(3, len(images), 1, 1, 1)
    images = images.lerp(F.avg_pool2d(images, 3, 1, 1, count_include_pad=False), blur)
    brightness = (2 * brightness - 1) * MAX_BRIGHTNESS
    images = images + brightness + MAX_NOISE * noise * torch.randn_like(images)
    # Colours are measured in 0 to 1, half as wide as the range of the images.
    lighter = brightness.view(-1, 1).expand(-1, 3) / 2
    return images, factors + torch.cat([shift.expand(len(images), 2), lighter], dim=1)


def train_probes(train: Truth, steps: int = STEPS) -> Probes:
    """Train both probes together on the training images."""
    probes, small = Probes(len(train.domains)), shrink(train.images)
    optimizer = torch.optim.AdamW(probes.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(small), (BATCH,))
        images, factors = augment(small[chosen], train.factors[chosen])
        scores, seen = probes(images)
        # A pixel counts as much as a tenth of a colour's range.
        pose = F.smooth_l1_loss(seen[:, CENTRE], factors[:, CENTRE])
        colour = F.smooth_l1_loss(10 * seen[:, FUR], 10 * factors[:, FUR])
        optimizer.zero_grad()
        (F.cross_entropy(scores, train.labels[chosen]) + pose + colour).backward()
        optimizer.step()
        schedule.step()
    return probes.eval()


def check_probes(probes: Probes, held_out: Truth) -> None:
    """Print how well the probes read images new to them; exit if that is not well enough."""
    labels, factors = probes.read(held_out.images)
    accuracy = (labels == held_out.labels).float().mean().item()
    pose_error = distance(factors, held_out.factors, CENTRE).mean().item()
    colour_error = distance(factors, held_out.factors, FUR).mean().item()
    print(f"probes on {len(labels)} validation images: accuracy {accuracy:.4f},", end=" ")
    print(f"pose error {pose_error:.3f} px, colour error {colour_error:.4f}")
    if accuracy < MIN_PROBE_ACCURACY or pose_error > MAX_PROBE_POSE_ERROR:
        needed = f"accuracy {MIN_PROBE_ACCURACY} and pose error {MAX_PROBE_POSE_ERROR} px"
        raise SystemExit(f"the probes are too weak to judge by: they need {needed}")


def distance(a: Tensor, b: Tensor, columns: slice) -> Tensor:
    """Measure how far apart two tables of factors (..., 5) are in some columns: (...,)."""
    return torch.linalg.vector_norm(a[..., columns] - b[..., columns], dim=-1)


def spread(factors: Tensor) -> Tensor:
    """Take the root of the total variance over n of the fur colours in factors (n, ..., 5)."""
    return factors[..., FUR].var(dim=0).sum(dim=-1).sqrt()


@torch.no_grad()
def judge_pair(
    translator: Translator, probes: Probes, val: Truth, source: int, target: int
) -> dict[str, float]:
    """Translate from one domain to another, ``OUTPUTS`` times in each way there is, and measure."""
    sources, targets = val.of_domain(source), val.of_domain(target)
    sources = sources[torch.randperm(len(sources))[:SOURCES]]
    references = targets[torch.randint(len(targets), (OUTPUTS, len(sources)))]
    latents = torch.randn(OUTPUTS, len(sources), translator.config.model.latent_dim)
    x, y = val.images[sources], torch.full_like(sources, target)
    ways = [torch.stack([translator.from_latents(x, y, z) for z in latents])]
    if translator.guided_by_references:
        outputs = [translator.from_references(x, y, val.images[r]) for r in references]
        ways.append(torch.stack(outputs))
    labels, factors = probes.read(torch.stack(ways))  # (1 or 2, OUTPUTS, sources, ...)
    moved = distance(factors, val.factors[sources], CENTRE)
    measures = {
        "domain_accuracy_latent": (labels[0] == target).float(),
        "pose_error_px": moved,
        "pose_error_latent_px": moved[0],
        "style_spread_ratio": spread(factors[0]) / spread(val.factors[targets]),
    }
    if translator.guided_by_references:
        measures |= {
            "domain_accuracy_reference": (labels[1] == target).float(),
            "reference_colour_error": distance(factors[1], val.factors[references], FUR),
            "chance_colour_error": distance(factors[1], val.factors[shuffle(references)], FUR),
        }
    return {name: values.mean().item() for name, values in measures.items()}


def judge(translator: Translator, probes: Probes, val: Truth) -> dict[str, float]:
    """Judge every ordered pair of domains, and take the means."""
    pairs = itertools.permutations(range(len(val.domains)), 2)
    results = [judge_pair(translator, probes, val, source, target) for source, target in pairs]
    return {name: sum(r[name] for r in results) / len(results) for name in results[0]}


def shuffle(table: Tensor) -> Tensor:
    """Put the entries of a tensor into a random order, over all its dimensions."""
    return table.flatten()[torch.randperm(table.numel())].view_as(table)


def report(measures: dict[str, float]) -> None:
    """Print a table for people, then one line of JSON for programs.

    A translator that no reference guides has no measures of that.
    """
    known = [name for name in MEASURES if name in measures]
    for name in known:
        if name in WANTED:
            low, high = WANTED[name]
            met = "met" if low <= measures[name] <= high else "NOT MET"
            verdict = f"wanted {low:g} to {high:g}: {met}"
        else:
            verdict = f"(shuffled references: {measures['chance_colour_error']:.3f})"
        print(f"{name:<26} {measures[name]:.3f}  {verdict}")
    print(json.dumps({name: measures[name] for name in known}))


def prepare(shards: str, size: int, images: Path | None = None) -> tuple[Probes, Truth]:
    """Train the probes on a set, prove them, and load the validation images to be translated.

    Exits if they are too weak. ``images`` is the folder of factors.jsonl, if it lies elsewhere.
    """
    folder = images or Path(read_index(shards).source).parent
    train, val = (read_truth(shards, split, size, folder) for split in ("train", "val"))
    probes = train_probes(train)
    check_probes(probes, val)
    return probes, val


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Judge a run trained on the demo data set.")
    parser.add_argument("run", help="the folder or URL of the run")
    parser.add_argument("--checkpoint", default="latest")
    parser.add_argument("--images", type=Path, help="the folder of factors.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train the probes, prove them, and judge every ordered pair of domains with them."""
    options = parse(argv)
    torch.manual_seed(options.seed)
    translator = Translator.load(options.run, options.checkpoint)
    shards, size = translator.config.data.shards, translator.config.model.image_size
    probes, val = prepare(shards, size, options.images)
    report(judge(translator, probes, val))


if __name__ == "__main__":
    run_command(main)
