"""Train StarGAN on two drawn datasets at once, and judge what each has learnt from the other.

    python experiments/joint.py [--out build/joint]

One dataset is labelled with the species of its animals, which are all awake. The other is labelled
with their expressions, and has animals of all species. After training (configs/joint.yaml) images
of the first are translated to every expression, and images of the second to every species.

The judge is two classifiers of demo_quality.py, which learn from the complete labels of both
datasets. It reports the share of translations that have the target (`target`), that keep the
attribute which the target does not name (`kept`), and both (`both`), and beside it what a generator
that copies its input would get (`copied`). Results are OUT/joint.json and OUT/picture.png; the last
line printed is the JSON. The same command resumes an interrupted training.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_quality import (
    Probes,
    Truth,
    check_probes,
    learnt_factors,
    read_factors,
    train_probes,
)
from launching import CONFIGS, default_processes, train
from PIL import Image
from sheets import rows_of_outputs, sheet
from torch import Tensor

from stargan_dist.data.demo import EXPRESSIONS, SPECIES, write_dataset
from stargan_dist.data.index import INDEX, read_index
from stargan_dist.data.order import seeded_rng
from stargan_dist.data.reader import ShardReader
from stargan_dist.data.split import load_split
from stargan_dist.errors import run_command
from stargan_dist.inference.model import TrainedModel
from stargan_dist.shards.build import build

# Categories of the attribute that each dataset is labelled with, in the order of the datasets.
CATEGORIES = {"species": SPECIES, "expression": EXPRESSIONS}
SEEDS = {"species": 0, "expression": 1}
COUNT, PIXELS, SIZE = 1200, 64, 32  # images per domain; px as drawn; px in training
# Steps of the judges. Eyes are harder to read than heads: accuracy 0.983 after 600 steps, 0.996
# after 1200.
JUDGE_STEPS = {"species": 600, "expression": 1200}
BATCH_SIZE = 60  # images translated at once
GRID_SOURCES = 4  # of the image grid, per dataset


@dataclass(frozen=True)
class LabelledImages:
    """Images with the labels of both attributes, whichever dataset they come from.

    Attributes:
        images: (N, 3, H, H) in [-1, 1].
        labels: by attribute (a key of `CATEGORIES`): categories (N,).
        factors: (N, 5), see demo_quality.py.
    """

    images: Tensor
    labels: dict[str, Tensor]
    factors: Tensor

    def truth(self, attribute: str) -> Truth:
        """Return the images for the probes, with one attribute as the domains."""
        categories = list(CATEGORIES[attribute])
        return Truth(self.images, self.labels[attribute], self.factors, categories)


# The datasets.


def make_dataset(name: str, folder: Path, count: int) -> None:
    """Draw a dataset and build its shards, unless they exist."""
    animals, shards = folder / "animals", folder / "shards"
    if (shards / INDEX).is_file():
        return
    if not animals.is_dir():
        write_dataset(animals, count, PIXELS, SEEDS[name], expressions=name == "expression")
    build(str(animals / "images"), str(shards))


def read_labelled_images(folder: Path, split: str) -> LabelledImages:
    """Load a split of a dataset with the labels of both attributes."""
    shards = str(folder / "shards")
    loaded = load_split(ShardReader(shards, read_index(shards), split), SIZE)
    all_records = read_factors(folder / "animals" / "factors.jsonl")
    records = [all_records[path] for path in loaded.paths]
    labels = {
        attribute: torch.tensor([categories.index(record[attribute]) for record in records])
        for attribute, categories in CATEGORIES.items()
    }
    factors = torch.tensor([learnt_factors(record) for record in records])
    return LabelledImages(loaded.images.float() / 127.5 - 1, labels, factors)


def concatenate(datasets: Sequence[LabelledImages]) -> LabelledImages:
    """Concatenate the images of several datasets."""
    labels = {
        name: torch.cat([dataset.labels[name] for dataset in datasets]) for name in CATEGORIES
    }
    images = torch.cat([dataset.images for dataset in datasets])
    factors = torch.cat([dataset.factors for dataset in datasets])
    return LabelledImages(images, labels, factors)


# The judge.


def make_judges(train: LabelledImages, val: LabelledImages) -> dict[str, Probes]:
    """Train and test a classifier of species and one of expressions.

    Raises:
        SystemExit: one of them is too weak to judge by.
    """
    judges = {}
    for number, name in enumerate(CATEGORIES):
        torch.manual_seed(number)
        judges[name] = train_probes(train.truth(name), JUDGE_STEPS[name], f"judge of {name}")
        print(f"judge of {name}:", end=" ", flush=True)
        check_probes(judges[name], val.truth(name))
    return judges


def label_vector(translator: TrainedModel, attribute: str, target: int) -> Tensor:
    """Return the label (1, size) of one category of one dataset."""
    one_hot = np.eye(len(CATEGORIES[attribute]), dtype=np.float32)[target]
    number = list(CATEGORIES).index(attribute)
    return torch.from_numpy(translator.labels.vector(number, one_hot))[None]


def translate(translator: TrainedModel, images: Tensor, attribute: str, target: int) -> Tensor:
    """Change one attribute of images (N, 3, H, H). StarGAN ignores the latents."""
    outputs, label = [], label_vector(translator, attribute, target)
    for x in images.split(BATCH_SIZE):
        z = torch.zeros(len(x), translator.config.model.latent_dim)
        outputs.append(translator.from_latents(x, label.expand(len(x), -1), z))
    return torch.cat(outputs)


def verdicts(
    judges: dict[str, Probes],
    outputs: Tensor,
    sources: LabelledImages,
    attribute: str,
    target: int,
) -> dict[str, Tensor]:
    """Judge each output (N,): has it the target, has it kept the other attribute, and both."""
    (other,) = (name for name in CATEGORIES if name != attribute)
    read = {name: judges[name].read(outputs)[0] for name in CATEGORIES}
    right, kept = read[attribute] == target, read[other] == sources.labels[other]
    return {"target": right, "kept": kept, "both": right & kept}


def shares(verdict: dict[str, Tensor]) -> dict[str, float]:
    """Return the share of images for which each part of a verdict is true."""
    return {name: values.float().mean().item() for name, values in verdict.items()}


def judge(
    translator: TrainedModel, judges: dict[str, Probes], sources: LabelledImages, attribute: str
) -> dict[str, Any]:
    """Judge translations to every category of an attribute.

    Returns:
        Shares over all images for each target (`to NAME`), and over all images that do not have
        the target yet (`changes`). `copied` is the share of `both` for a copy of the input.
    """
    report: dict[str, Any] = {}
    changes: list[dict[str, Tensor]] = []
    for target, name in enumerate(CATEGORIES[attribute]):
        outputs = translate(translator, sources.images, attribute, target)
        verdict = verdicts(judges, outputs, sources, attribute, target)
        copies = verdicts(judges, sources.images, sources, attribute, target)
        verdict["copied"] = copies["both"]
        report[f"to {name}"] = shares(verdict)
        changed = sources.labels[attribute] != target
        changes.append({key: values[changed] for key, values in verdict.items()})
    all_changes = {key: torch.cat([verdict[key] for verdict in changes]) for key in changes[0]}
    return report | {"changes": shares(all_changes)}


def share_read_correctly(judges: dict[str, Probes], sources: LabelledImages) -> float:
    """Return the share of untranslated images that both judges read correctly.

    It is an upper bound of what translations can be expected to get.
    """
    species, expression = (
        judges[name].read(sources.images)[0] == sources.labels[name] for name in CATEGORIES
    )
    return (species & expression).float().mean().item()


def judge_all(
    translator: TrainedModel, judges: dict[str, Probes], val: dict[str, LabelledImages]
) -> dict[str, Any]:
    """Judge translations of each dataset by the attribute that only the other is labelled with."""
    return {
        "step": translator.step,
        "untranslated_read_rightly": {
            name: share_read_correctly(judges, val[name]) for name in CATEGORIES
        },
        "species_set_to_expressions": judge(translator, judges, val["species"], "expression"),
        "expression_set_to_species": judge(translator, judges, val["expression"], "species"),
    }


# The image grid.


def image_grid(translator: TrainedModel, val: dict[str, LabelledImages]) -> Image.Image:
    """Draw images of each dataset, and their translations to every category of both attributes."""
    targets = [
        (attribute, target)
        for attribute, categories in CATEGORIES.items()
        for target in range(len(categories))
    ]
    blocks = {}
    for name, labelled in val.items():
        chosen = seeded_rng(0, "joint").choice(len(labelled.images), GRID_SOURCES, replace=False)
        x = labelled.images[torch.from_numpy(chosen)]
        outputs = torch.stack([translate(translator, x, *target) for target in targets], dim=1)
        blocks[f"{name} dataset"] = rows_of_outputs(x, outputs.flatten(0, 1))
    return sheet(blocks, ["source", *(CATEGORIES[name][target] for name, target in targets)])


# The experiment.


def training_options(out: Path) -> list[str]:
    """Return the training's command line."""
    sources = {name: {"shards": str(out / name / "shards")} for name in CATEGORIES}
    return [
        "--config", str(CONFIGS / "joint.yaml"),
        "--run", str(out / "run"),
        "--data.sources", json.dumps(sources),
    ]  # fmt: skip


def print_result(result: dict[str, Any]) -> None:
    """Print a table for people, then one line of JSON for programs."""
    for key in ("species_set_to_expressions", "expression_set_to_species"):
        print(f"{key:<28} {'target':>8} {'kept':>8} {'both':>8} {'a copy':>8}")
        for name, row in result[key].items():
            print(f"  {name:<26} " + " ".join(f"{share:8.3f}" for share in row.values()))
    print(json.dumps(result))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; `rest` holds the options of the training."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="All other options are passed to the training (python -m stargan_dist.train).",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/joint"),
        help="folder for the datasets, the run and the results (default: build/joint)",
    )
    parser.add_argument(
        "--count", type=int, default=COUNT, help=f"images drawn per domain (default: {COUNT})"
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=default_processes(),
        help="processes of the training (default: 2 on CPUs; one per GPU, a power of two up to 8)",
    )
    args, rest = parser.parse_known_args(argv)
    return argparse.Namespace(**vars(args), rest=rest)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the datasets, train on them, and judge the result."""
    args = parse(argv)
    folders = {name: args.out / name for name in CATEGORIES}
    for name, folder in folders.items():
        make_dataset(name, folder, args.count)
    train([*training_options(args.out), *args.rest], args.processes)
    translator = TrainedModel.load(str(args.out / "run"))
    train_images, val = (
        {name: read_labelled_images(folder, split) for name, folder in folders.items()}
        for split in ("train", "val")
    )
    judges = make_judges(concatenate([*train_images.values()]), concatenate([*val.values()]))
    result = judge_all(translator, judges, val)
    (args.out / "joint.json").write_text(json.dumps(result, indent=1) + "\n")
    image_grid(translator, val).save(args.out / "picture.png")
    print(f"written to {args.out}: joint.json, picture.png")
    print_result(result)


if __name__ == "__main__":
    run_command(main)
