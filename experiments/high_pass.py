"""Compare the demo with the high-pass option to the demo without it.

    python experiments/high_pass.py [--seeds 1 2 3] [--out build/high_pass]

Two landmark networks are fitted to the drawn animals: one makes the masks, and the other, of
another width and seed, is a probe that locates the eyes in translations. For each seed the demo is
trained without masks (configs/demo.yaml) and with them (configs/demo_hpf.yaml on top). Both are
judged as `make demo` does (demo_quality.py), and by the distance of the eyes in translations from
those of their sources. The table has means and standard errors over seeds; the last line is one
JSON object.

The same command resumes an interrupted experiment. Networks are kept in OUT, with masks.png, a
picture of the masks; runs and their measures in OUT/NAME/seed_N.
"""

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from ablation import write_atomically
from demo_quality import OUTPUTS, SIDE, SOURCES, Probes, Truth, judge, prepare
from launching import CONFIGS, default_processes, train
from sheets import sheet
from torch import Tensor

from stargan_dist.console.tables import format_table
from stargan_dist.data.demo import LANDMARKS, write_dataset
from stargan_dist.data.index import INDEX, read_index
from stargan_dist.data.reader import ShardReader
from stargan_dist.data.split import load_split
from stargan_dist.errors import UserError, run_command
from stargan_dist.faces import manifest
from stargan_dist.faces.points import points_of
from stargan_dist.inference.model import TrainedModel
from stargan_dist.models import landmarks
from stargan_dist.models.landmarks import SavedLandmarks
from stargan_dist.nets.fan import FAN
from stargan_dist.shards.build import build

COUNT, PIXELS = 1200, 64  # as `make demo` draws
EYES = [LANDMARKS.index(name) for name in ("left eye", "right eye")]
STEPS = 820
FIT = {"input-size": 64, "batch-size": 32, "steps": 1000, "lr": 3e-3}
NETWORKS = {"masks": {"width": 32, "seed": 0}, "probe": {"width": 48, "seed": 1}}
MEASURES_FILE = "measures.json"  # in the folder of a run
PICTURE_IMAGES = 2  # of each species
MASK_COLOUR, MASK_OPACITY = (1.0, -1.0, -1.0), 0.7  # red, in [-1, 1]


# Landmarks.


def make_dataset(out: Path) -> None:
    """Draw the animals and build their shards, unless they exist."""
    if not (out / "animals").is_dir():
        write_dataset(out / "animals", COUNT, PIXELS, seed=0)
    if not (out / "shards" / INDEX).is_file():
        build(str(out / "animals" / "images"), str(out / "shards"))


def network_file(out: Path, name: str) -> Path:
    """Return the file of a landmark network."""
    return out / f"{name}.safetensors"


def fit_landmarks(out: Path, name: str) -> SavedLandmarks:
    """Fit a landmark network as a user would, unless its file exists."""
    file = network_file(out, name)
    if not file.exists():
        files = ["--points", out / "animals/landmarks.jsonl",
                 "--parts", CONFIGS / "animals_parts.json"]  # fmt: skip
        options = [w for key, value in (FIT | NETWORKS[name]).items() for w in (f"--{key}", value)]
        command = [sys.executable, "-m", "stargan_dist.landmarks", "train"]
        words = map(str, [out / "shards", file, *files, *options])
        code = subprocess.run([*command, *words], check=False).returncode
        if code:
            raise UserError(f"fitting {file} failed with exit code {code}; it has printed why")
    return landmarks.read(str(file))


def eye_places(out: Path, size: int) -> Tensor:
    """Return the eyes (N, 2, 2) of the validation images as x, y in pixels of `SIDE`."""
    points = manifest.read(str(out / "animals/landmarks.jsonl"))
    shards = str(out / "shards")
    paths = load_split(ShardReader(shards, read_index(shards), "val"), size).paths
    return torch.stack([torch.from_numpy(points.rows[p].points[EYES]) for p in paths]) * (
        SIDE / PIXELS
    )


@torch.no_grad()
def find_eyes(probe: FAN, images: Tensor) -> Tensor:
    """Locate the eyes (..., 2, 2) in images (..., 3, H, H), in pixels of `SIDE`."""
    flat = images.flatten(0, -4).clamp(-1, 1)
    points = torch.cat([points_of(probe(x)[:, EYES], SIDE) for x in flat.split(64)])
    return points.unflatten(0, images.shape[:-3])


# Measures of a run.


@torch.no_grad()
def eye_errors(
    translator: TrainedModel, probe: FAN, val: Truth, places: Tensor
) -> dict[str, float]:
    """Return the mean distance of eyes in translations from those of their sources, by guide.

    Sources, latents and references are drawn as `judge_pair` draws them.
    """
    errors: dict[str, list[Tensor]] = {"eyes_latent_px": [], "eyes_reference_px": []}
    for source, target in itertools.permutations(range(len(val.domains)), 2):
        chosen, targets = val.of_domain(source), val.of_domain(target)
        chosen = chosen[torch.randperm(len(chosen))[:SOURCES]]
        references = targets[torch.randint(len(targets), (OUTPUTS, len(chosen)))]
        latents = torch.randn(OUTPUTS, len(chosen), translator.config.model.latent_dim)
        x, y = val.images[chosen], torch.full_like(chosen, target)
        outputs = (
            torch.stack([translator.from_latents(x, y, z) for z in latents]),
            torch.stack([translator.from_references(x, y, val.images[r]) for r in references]),
        )
        for found, images in zip(errors.values(), outputs, strict=True):
            found.append((find_eyes(probe, images) - places[chosen]).norm(dim=-1).mean())
    return {name: torch.stack(found).mean().item() for name, found in errors.items()}


def training_options(name: str, folder: Path, seed: int, out: Path) -> list[str]:
    """Return the command line of a training."""
    settings = {
        "run": folder, "seed": seed, "steps": STEPS, "loss.ds_iter": STEPS,
        "schedule": "published", "data.shards": out / "shards", "evaluation.every": 0,
        "monitor.sample_every": 0, "monitor.log_every": 100, "checkpoint.keep_last": 1,
    }  # fmt: skip
    configs = ["--config", str(CONFIGS / "demo.yaml")]
    if name == "with masks":
        configs += ["--config", str(CONFIGS / "demo_hpf.yaml")]
        settings["model.landmarks"] = network_file(out, "masks")
    return configs + [str(word) for key, value in settings.items() for word in (f"--{key}", value)]


def perform(
    name: str, seed: int, out: Path, processes: int, judge_with: tuple[Probes, Truth], probe: FAN
) -> dict[str, float]:
    """Train and judge a run, unless it was judged before; return its measures."""
    folder = out / name.replace(" ", "_") / f"seed_{seed}"
    file = folder / MEASURES_FILE
    if not file.exists():
        print(f"\n== {name}, seed {seed}", flush=True)
        train(training_options(name, folder, seed, out), processes)
        translator, (probes, val) = TrainedModel.load(str(folder)), judge_with
        torch.manual_seed(0)  # the same sources and latents for all runs
        measures = judge(translator, probes, val)
        measures |= eye_errors(translator, probe, val, eye_places(out, SIDE))
        write_atomically(file, json.dumps(measures, indent=1).encode())
    found: dict[str, float] = json.loads(file.read_text())
    return found


# Results.


def masks_picture(masks: SavedLandmarks, out: Path) -> None:
    """Draw animals of each species, and below each its two masks in red."""
    shards = str(out / "shards")
    split = load_split(
        ShardReader(shards, read_index(shards), "val"), PIXELS, per_domain=PICTURE_IMAGES
    )
    x = split.images / 127.5 - 1
    colour = torch.tensor(MASK_COLOUR).view(3, 1, 1)
    blocks = {"image": x[None]}
    for i, name in enumerate(("mask 1", "mask 2")):
        blocks[name] = x.lerp(colour, MASK_OPACITY * masks.masks()(x)[:, i, None])[None]
    blocks = {name: images.repeat_interleave(2, 3).repeat_interleave(2, 4)
              for name, images in blocks.items()}  # fmt: skip
    header = [split.domains[label] for label in split.labels]
    sheet(blocks, header).quantize(128).save(out / "masks.png", optimize=True)


def cell(values: Sequence[float]) -> str:
    """Format the mean and its standard error."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.3f} ± {error:.3f}"


def report(results: dict[str, list[dict[str, float]]], eyes_of_sources: float) -> None:
    """Print a table for people, then one line of JSON for programs."""
    names = [name for name in next(iter(results.values()))[0] if not name.startswith("chance")]
    rows = [["measure", *results]]
    rows += [[n, *(cell([run[n] for run in runs]) for runs in results.values())] for n in names]
    print(format_table(rows, left=(0,)))
    print(f"the probe's own error on sources: {eyes_of_sources:.3f} px of {SIDE}")
    print(json.dumps({"eyes_of_sources_px": eyes_of_sources, **results}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("build/high_pass"))
    parser.add_argument("--processes", type=int, default=default_processes())
    args = parser.parse_args()
    make_dataset(args.out)
    masks, probe_file = (fit_landmarks(args.out, name) for name in NETWORKS)
    masks_picture(masks, args.out)
    probe = probe_file.build()
    torch.manual_seed(0)
    judge_with = prepare(str(args.out / "shards"), SIDE, args.out / "animals")
    found = find_eyes(probe, judge_with[1].images)
    eyes_of_sources = (found - eye_places(args.out, SIDE)).norm(dim=-1).mean().item()
    results: dict[str, list[dict[str, float]]] = {"without masks": [], "with masks": []}
    for seed in args.seeds:
        for name, runs in results.items():
            runs.append(perform(name, seed, args.out, args.processes, judge_with, probe))
    report(results, eyes_of_sources)


if __name__ == "__main__":
    run_command(main)
