"""Trains StarGAN on two drawn sets at once, and judges what each has learnt from the other.

    python experiments/joint.py [--out build/joint]

One set knows the species of its animals, which are all awake; the other their expressions, and
holds all species without saying which. After training (configs/joint.yaml), validation images of
the first are given expressions, and those of the second species. The judge (two classifiers of
demo_quality.py, which learn from the truth about both sets) says of how many translations the
target is right and what the target does not speak of is kept: both at once. Beside it stands what
a generator that copies its input would get. Written are OUT/joint.json and OUT/picture.png; the
last line printed is the JSON. The same command goes on with an interrupted training.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_quality import Probes, Truth, check_probes, factors_of, read_rows, train_probes
from launching import CONFIGS, default_processes, train
from PIL import Image
from sheets import across, sheet
from torch import Tensor

from stargan_dist.data.demo import EXPRESSIONS, SPECIES, write_dataset
from stargan_dist.data.index import INDEX, read_index
from stargan_dist.data.order import seeded_rng
from stargan_dist.data.reader import ShardReader, load_split
from stargan_dist.errors import run_command
from stargan_dist.inference.translator import Translator
from stargan_dist.shards.build import build

SETS = {"species": SPECIES, "expression": EXPRESSIONS}  # what each set knows; their order counts
SEEDS = {"species": 0, "expression": 1}
COUNT, PIXELS, SIZE = 1200, 64, 32  # images of each domain; as drawn, and as trained on
# Of the judges; eyes are harder to read than heads: 600 steps made 0.983 right, 1200 0.996.
JUDGE_STEPS = {"species": 600, "expression": 1200}
AT_ONCE = 60  # images that are translated together
PICTURE_SOURCES = 4


@dataclass(frozen=True)
class Known:
    """Images (N, 3, H, H) in [-1, 1] and the whole truth about them.

    ``labels`` has (N,) for each of `SETS`, whichever set they come from; factors are (N, 5).
    """

    images: Tensor
    labels: dict[str, Tensor]
    factors: Tensor

    def of(self, what: str) -> Truth:
        """For the probes, with one of the two as what they are to tell."""
        return Truth(self.images, self.labels[what], self.factors, list(SETS[what]))


# The sets.


def make_set(name: str, folder: Path, count: int) -> None:
    """Draw a set and build its shards, unless that is done."""
    animals, shards = folder / "animals", folder / "shards"
    if (shards / INDEX).is_file():
        return
    if not animals.is_dir():
        write_dataset(animals, count, PIXELS, SEEDS[name], expressions=name == "expression")
    build(str(animals / "images"), str(shards))


def read_known(folder: Path, split: str) -> Known:
    """Load a split of a set."""
    shards = str(folder / "shards")
    loaded = load_split(ShardReader(shards, read_index(shards), split), SIZE)
    rows = read_rows(folder / "animals" / "factors.jsonl")
    found = [rows[path] for path in loaded.paths]
    labels = {
        name: torch.tensor([names.index(row[name]) for row in found])
        for name, names in SETS.items()
    }
    factors = torch.tensor([factors_of(row) for row in found])
    return Known(loaded.images.float() / 127.5 - 1, labels, factors)


def joined(parts: Sequence[Known]) -> Known:
    """The images of all parts as one."""
    labels = {name: torch.cat([part.labels[name] for part in parts]) for name in SETS}
    images, factors = (torch.cat([getattr(p, f) for p in parts]) for f in ("images", "factors"))
    return Known(images, labels, factors)


# The judge.


def make_judges(train: Known, val: Known) -> dict[str, Probes]:
    """Train a classifier of species and one of expressions; exit if one is too weak."""
    judges = {}
    for number, name in enumerate(SETS):
        print(f"judge of {name}:", end=" ", flush=True)
        torch.manual_seed(number)
        judges[name] = train_probes(train.of(name), JUDGE_STEPS[name])
        check_probes(judges[name], val.of(name))
    return judges


def label_of(translator: Translator, what: str, target: int) -> Tensor:
    """The label (1, size) that asks for one category of one set."""
    one_hot = np.eye(len(SETS[what]), dtype=np.float32)[target]
    return torch.from_numpy(translator.labels.vector(list(SETS).index(what), one_hot))[None]


def translate(translator: Translator, images: Tensor, what: str, target: int) -> Tensor:
    """Images (N, 3, H, H) with one attribute changed. StarGAN has no use for the latents."""
    done, label = [], label_of(translator, what, target)
    for x in images.split(AT_ONCE):
        z = torch.zeros(len(x), translator.config.model.latent_dim)
        done.append(translator.from_latents(x, label.expand(len(x), -1), z))
    return torch.cat(done)


def verdicts(
    judges: dict[str, Probes], images: Tensor, known: Known, what: str, target: int
) -> dict[str, Tensor]:
    """Of each image (N,): has it the target, has it kept the other attribute, and both."""
    (other,) = (name for name in SETS if name != what)
    read = {name: judges[name].read(images)[0] for name in SETS}
    right, kept = read[what] == target, read[other] == known.labels[other]
    return {"target": right, "kept": kept, "both": right & kept}


def shares(told: dict[str, Tensor], chosen: Tensor) -> dict[str, float]:
    """Shares of the chosen images."""
    return {name: which[chosen].float().mean().item() for name, which in told.items()}


def judge(
    translator: Translator, judges: dict[str, Probes], known: Known, what: str
) -> dict[str, Any]:
    """Change one attribute of images: for each target, and over all images that it changes.

    ``copied`` is what an unchanged copy of the input gets for both.
    """
    report: dict[str, Any] = {}
    changes: list[dict[str, Tensor]] = []
    for target, name in enumerate(SETS[what]):
        told = verdicts(judges, translate(translator, known.images, what, target), known, what,
                        target)  # fmt: skip
        told["copied"] = verdicts(judges, known.images, known, what, target)["both"]
        everything = torch.ones_like(told["both"])
        report[f"to {name}"] = shares(told, everything)
        changed = known.labels[what] != target
        changes.append({key: which[changed] for key, which in told.items()})
    together = {key: torch.cat([told[key] for told in changes]) for key in changes[0]}
    return report | {"changes": shares(together, torch.ones_like(together["both"]))}


def read_rightly(judges: dict[str, Probes], known: Known) -> float:
    """The share of untranslated images of which both judges tell the truth: no more can be hoped
    for of translations."""
    right = [judges[name].read(known.images)[0] == known.labels[name] for name in SETS]
    return (right[0] & right[1]).float().mean().item()


def judge_all(
    translator: Translator, judges: dict[str, Probes], val: dict[str, Known]
) -> dict[str, Any]:
    """Give each set's images what only the other set knows."""
    return {
        "step": translator.step,
        "untranslated_read_rightly": {name: read_rightly(judges, val[name]) for name in SETS},
        "species_set_to_expressions": judge(translator, judges, val["species"], "expression"),
        "expression_set_to_species": judge(translator, judges, val["expression"], "species"),
    }


# The picture.


def picture(translator: Translator, val: dict[str, Known]) -> Image.Image:
    """Images of each set, and each of them with every target of both sets."""
    targets = [(what, target) for what in SETS for target in range(len(SETS[what]))]
    blocks = {}
    for name, known in val.items():
        chosen = seeded_rng(0, "joint").choice(len(known.images), PICTURE_SOURCES, replace=False)
        x = known.images[torch.from_numpy(chosen)]
        outputs = torch.stack([translate(translator, x, *target) for target in targets], dim=1)
        blocks[f"{name} set"] = across(x, outputs.flatten(0, 1))
    return sheet(blocks, ["source", *(SETS[what][target] for what, target in targets)])


# All of it.


def options_of(out: Path) -> list[str]:
    """The training's command line."""
    sources = {name: {"shards": str(out / name / "shards")} for name in SETS}
    own = {"--run": str(out / "run"), "--data.sources": json.dumps(sources)}
    return [
        "--config",
        str(CONFIGS / "joint.yaml"),
        *(part for pair in own.items() for part in pair),
    ]


def show(result: dict[str, Any]) -> None:
    """Print a table for people, then one line of JSON for programs."""
    for what in ("species_set_to_expressions", "expression_set_to_species"):
        print(f"{what:<28} {'target':>8} {'kept':>8} {'both':>8} {'a copy':>8}")
        for name, found in result[what].items():
            print(f"  {name:<26} " + " ".join(f"{share:8.3f}" for share in found.values()))
    print(json.dumps(result))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; what is unknown is for the training."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="Other options go to the training."
    )
    parser.add_argument("--out", type=Path, default=Path("build/joint"))
    parser.add_argument("--count", type=int, default=COUNT, help="images of each domain")
    parser.add_argument("--processes", type=int, default=default_processes())
    options, rest = parser.parse_known_args(argv)
    return argparse.Namespace(**vars(options), rest=rest)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, train, judge."""
    options = parse(argv)
    folders = {name: options.out / name for name in SETS}
    for name, folder in folders.items():
        make_set(name, folder, options.count)
    train([*options_of(options.out), *options.rest], options.processes)
    translator = Translator.load(str(options.out / "run"))
    of_train, val = (
        {name: read_known(folder, split) for name, folder in folders.items()}
        for split in ("train", "val")
    )
    judges = make_judges(joined([*of_train.values()]), joined([*val.values()]))
    result = judge_all(translator, judges, val)
    (options.out / "joint.json").write_text(json.dumps(result, indent=1) + "\n")
    picture(translator, val).save(options.out / "picture.png")
    print(f"written to {options.out}: joint.json, picture.png")
    show(result)


if __name__ == "__main__":
    run_command(main)
