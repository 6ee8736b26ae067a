"""Judges a run trained on the demo data set against the factors its images were drawn from.

    python benchmarks/demo_quality.py RUN [--checkpoint latest] [--images DIR] [--seed 0]

Two small networks, the probes, learn from the real training images to tell the species (from grey
images, so blind to colour), where the head is, and which colour the fur has. They must prove
themselves on the validation images; if they do not, the exit status is 1. Then they measure
translations of validation images. The last line printed is one JSON object with the measures.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stargan_dist.data.stream import load_split
from stargan_dist.errors import UserError, run_command
from stargan_dist.shards.index import read_index
from stargan_dist.translate import Translator

SIDE = 32  # what the probes look at: the unit of all positions is one of 32 pixels
CENTRE, FUR = slice(0, 2), slice(2, 5)  # the columns of the factors: x, y in px; RGB in 0 to 1

STEPS, BATCH, PEAK_LR = 600, 64, 4e-3
MAX_SHIFT, MAX_BRIGHTNESS, MAX_NOISE = 3, 0.2, 0.1  # px; of the range -1 to 1; its deviation

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
        """The positions (n,) of a domain's images."""
        return (self.labels == label).nonzero().flatten()


class SpeciesProbe(nn.Sequential):
    """Scores of the species (B, K) for images (B, 3, 32, 32), of which it sees the luminance."""

    def __init__(self, num_species: int) -> None:
        super().__init__(
            nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(24, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(48, 96, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Dropout(0.2), nn.Linear(96 * 4 * 4, num_species),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        luminance = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        scores: Tensor = super().forward((images * luminance).sum(dim=1, keepdim=True))
        return scores


class FactorProbe(nn.Module):
    """Factors (B, 5) of images (B, 3, 32, 32): two learnt maps say where to look.

    The head's centre is the mean position under the first map, and the colour of the fur is the
    mean colour under the second. So the probe can be wrong about where, but it cannot invent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(3, 32, 4, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(),
            nn.Conv2d(48, 48, 3, padding=2, dilation=2), nn.ReLU(),
            nn.Conv2d(48, 2, 3, padding=1),
        )  # fmt: skip
        middles = torch.arange(SIDE // 2) * 2.0 + 1.0
        self.register_buffer("places", torch.cartesian_prod(middles, middles).flip(1))

    def forward(self, images: Tensor) -> Tensor:
        where, what = self.maps(images).flatten(2).softmax(dim=2).unbind(dim=1)
        colours = F.avg_pool2d(images, 2).flatten(2) / 2 + 0.5
        return torch.cat([where @ self.places, torch.einsum("bp,bcp->bc", what, colours)], dim=1)


@dataclass(frozen=True)
class Probes:
    """What reads the factors back out of images."""

    species: SpeciesProbe
    factors: FactorProbe

    @torch.no_grad()
    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The domain (N,) and the factors (N, 5) seen in images (N, 3, H, H) in [-1, 1]."""
        small = F.adaptive_avg_pool2d(images.clamp(-1, 1), SIDE)
        return self.species(small).argmax(dim=1), self.factors(small)


def read_truth(shards: str, split: str, size: int, folder: Path) -> Truth:
    """Loads a split, with the factors from the ``factors.jsonl`` in ``folder``."""
    path = folder / "factors.jsonl"
    if not path.is_file():
        raise UserError(f"no factors at {path}: give the demo data set's folder with --images")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    factors = {row["file"]: factors_of(row) for row in rows}
    loaded = load_split(shards, split, size)
    images = loaded.images.float() / 127.5 - 1
    table = torch.tensor([factors[file] for file in loaded.paths])
    return Truth(images, loaded.labels, table, loaded.domains)


def factors_of(row: dict[str, float | list[int]]) -> list[float]:
    """The five factors that are measured, from a line of ``factors.jsonl``."""
    x, y, fur = row["x"], row["y"], row["fur"]
    return [x * SIDE, y * SIDE, *(value / 255 for value in fur)]


def augment(images: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Images (B, 3, 32, 32) as a generator might have made them, and their factors (B, 5).

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
    lighter = brightness.view(-1, 1).expand(-1, 3) / 2
    return images, factors + torch.cat([shift.expand(len(images), 2), lighter], dim=1)


def train_probes(train: Truth) -> Probes:
    """Trains both probes together on the training images."""
    probes = Probes(SpeciesProbe(len(train.domains)), FactorProbe())
    networks = nn.ModuleList([probes.species, probes.factors])
    optimizer = torch.optim.AdamW(networks.parameters(), lr=PEAK_LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=STEPS)
    small = F.adaptive_avg_pool2d(train.images, SIDE)
    for _ in range(STEPS):
        chosen = torch.randint(len(small), (BATCH,))
        images, factors = augment(small[chosen], train.factors[chosen])
        loss = probe_loss(probes, images, train.labels[chosen], factors)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    networks.eval()
    return probes


def probe_loss(probes: Probes, images: Tensor, labels: Tensor, factors: Tensor) -> Tensor:
    """The mean loss of both probes on a batch; a pixel counts as much as a tenth of a colour."""
    seen = probes.factors(images)
    pose = F.smooth_l1_loss(seen[:, CENTRE], factors[:, CENTRE])
    colour = F.smooth_l1_loss(10 * seen[:, FUR], 10 * factors[:, FUR])
    return F.cross_entropy(probes.species(images), labels) + pose + colour


def check_probes(probes: Probes, held_out: Truth) -> None:
    """Prints how well the probes do on images they have not seen, and exits if not well enough."""
    labels, factors = probes.read(held_out.images)
    accuracy = (labels == held_out.labels).float().mean().item()
    pose_error, colour_error = (
        distance(factors, held_out.factors, columns).mean().item() for columns in (CENTRE, FUR)
    )
    print(
        f"probes, held out: accuracy {accuracy:.4f}, pose error {pose_error:.3f} px,"
        f" colour error {colour_error:.4f}"
    )
    if accuracy < MIN_PROBE_ACCURACY or pose_error > MAX_PROBE_POSE_ERROR:
        sys.exit(
            f"the probes are too weak to judge by: accuracy {MIN_PROBE_ACCURACY} and"
            f" pose error {MAX_PROBE_POSE_ERROR} px are needed"
        )


def distance(a: Tensor, b: Tensor, columns: slice) -> Tensor:
    """Euclidean distance (...,) of two tables of factors (..., 5) in some columns."""
    return torch.linalg.vector_norm(a[..., columns] - b[..., columns], dim=-1)


def spread(factors: Tensor) -> Tensor:
    """Root of the total variance of the fur colours in ``factors`` (n, ..., 5), over n."""
    return factors[..., FUR].var(dim=0).sum(dim=-1).sqrt()


def judge_pair(
    translator: Translator, probes: Probes, val: Truth, source: int, target: int
) -> dict[str, float]:
    """The measures of translating from one domain to another."""
    sources, candidates = val.of_domain(source), val.of_domain(target)
    sources = sources[torch.randperm(len(sources))[:SOURCES]]
    references = candidates[torch.randint(len(candidates), (OUTPUTS, len(sources)))]
    x, y = val.images[sources], torch.full_like(sources, target)
    latents = torch.randn(OUTPUTS, len(sources), translator.config.model.latent_dim)
    by_latent = [probes.read(translator.from_latents(x, y, z)) for z in latents]
    by_reference = [
        probes.read(translator.from_references(x, y, val.images[chosen])) for chosen in references
    ]
    latent_labels, latent_factors = map(torch.stack, zip(*by_latent, strict=True))
    labels, factors = map(torch.stack, zip(*by_reference, strict=True))
    poses = torch.cat([latent_factors, factors])
    true_colours = val.factors[references]
    shuffled = true_colours.flatten(0, 1)[torch.randperm(references.numel())].view_as(true_colours)
    measures = {
        "domain_accuracy_latent": (latent_labels == target).float(),
        "domain_accuracy_reference": (labels == target).float(),
        "pose_error_px": distance(poses, val.factors[sources], CENTRE),
        "style_spread_ratio": spread(latent_factors) / spread(val.factors[candidates]),
        "reference_colour_error": distance(factors, true_colours, FUR),
        "chance_colour_error": distance(factors, shuffled, FUR),
    }
    return {name: values.mean().item() for name, values in measures.items()}


def report(measures: dict[str, float]) -> None:
    """Prints a table for people, then one line of JSON for programs."""
    for name in MEASURES:
        verdict = f"(shuffled references: {measures['chance_colour_error']:.3f})"
        if name in WANTED:
            low, high = WANTED[name]
            met = "met" if low <= measures[name] <= high else "NOT MET"
            verdict = f"wanted {low:g} to {high:g}: {met}"
        print(f"{name:<26} {measures[name]:.3f}  {verdict}")
    print(json.dumps({name: measures[name] for name in MEASURES}))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Judge a run trained on the demo data set.")
    parser.add_argument("run", help="the folder or URL of the run")
    parser.add_argument("--checkpoint", default="latest")
    parser.add_argument("--images", type=Path, help="the folder of factors.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    torch.manual_seed(options.seed)
    translator = Translator.load(options.run, options.checkpoint)
    shards, size = translator.config.data.shards, translator.config.model.image_size
    folder = options.images or Path(read_index(shards).source).parent
    train, val = (read_truth(shards, split, size, folder) for split in ("train", "val"))
    probes = train_probes(train)
    check_probes(probes, val)
    pairs = itertools.permutations(range(len(val.domains)), 2)
    results = [judge_pair(translator, probes, val, source, target) for source, target in pairs]
    report({name: sum(r[name] for r in results) / len(results) for name in results[0]})


if __name__ == "__main__":
    run_command(main)
