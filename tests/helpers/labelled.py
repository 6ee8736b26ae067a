"""Two datasets of plain pictures with labels of different kinds, and translators between them.

`tiles` are red or green, which exclude each other, and bright or dark. `bars` have bars that are
upright or flat; their colour is not known.
"""

import dataclasses
import json

import numpy as np
import torch
from PIL import Image

from stargan_dist.config import Config, DataConfig, EvaluationConfig, ModelConfig, SourceConfig
from stargan_dist.data.sources import open_sources
from stargan_dist.evaluation import protocols
from stargan_dist.inference.model import TrainedModel
from stargan_dist.nets.networks import generator_networks
from stargan_dist.objectives.recipes import resolve
from stargan_dist.shards.build import build

SIZE = 32
TILES = ("red", "green", "bright")
BARS = ("flat", "upright")  # domains, in alphabetical order


def tile(red, green, bright):
    """Draw a tile, (3, H, H) in [0, 255]."""
    pixels = np.zeros((3, SIZE, SIZE))
    pixels[0 if red else 1] = 255 if bright else 110
    return pixels


def bar(upright):
    """Draw a picture of bars, (3, H, H) in [0, 255]."""
    pixels = np.zeros((3, SIZE, SIZE))
    pixels[2] = np.where(np.arange(SIZE) // 4 % 2, 255, 60)[None, :]
    return pixels if upright else pixels.swapaxes(1, 2)


def write(folder, count=6, without=()):
    """Write both datasets and their shards, a third for validation.

    Args:
        count: pictures for each combination of labels.
        without: combinations (red, bright) that validation tiles do not have.
    """
    rng, tiles = np.random.default_rng(0), []
    for i in range(count):
        split = "val" if i < count // 3 else "train"
        for red, bright in ((0, 0), (0, 1), (1, 0), (1, 1)):
            name = f"{i}_{red}{bright}.png"
            save(folder / "tiles" / name, tile(red, 1 - red, bright), rng)
            labels = {"red": red, "green": 1 - red, "bright": bright}
            if split == "train" or (red, bright) not in without:
                tiles.append({"path": name, "domain": "tile", "split": split, **labels})
        for upright in (0, 1):
            save(folder / "bars" / split / BARS[upright] / f"{i}.png", bar(upright), rng)
    lines = "\n".join(map(json.dumps, tiles))
    (folder / "tiles" / "tiles.jsonl").write_text(lines)
    build(str(folder / "tiles" / "tiles.jsonl"), str(folder / "tiles_shards"), shard_images=5)
    build(str(folder / "bars"), str(folder / "bars_shards"))
    return folder


def save(path, pixels, rng):
    path.parent.mkdir(parents=True, exist_ok=True)
    noisy = np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)
    Image.fromarray(noisy.transpose(1, 2, 0)).save(path)


def sources(folder):
    """Return the data sources of both datasets, as in a configuration."""
    tiles = SourceConfig(str(folder / "tiles_shards"), list(TILES), [["red", "green"]])
    return {"tiles": tiles, "bars": SourceConfig(str(folder / "bars_shards"))}


def config(folder, run, names=("tiles", "bars")):
    """Return a configuration of some of the data sources, with the protocol `demo`."""
    chosen = {name: source for name, source in sources(folder).items() if name in names}
    return Config(
        run=str(run),
        recipe="c_acgan",
        data=DataConfig(sources=chosen, workers=0),
        model=ModelConfig(image_size=SIZE, base_width=4, max_width=8, latent_dim=4),
        evaluation=EvaluationConfig(protocol="demo", cache=str(run / "cache")),
    )


def translator(of_config, kind=TrainedModel):
    """Return a translator with random weights."""
    spec, labels = resolve(of_config), open_sources(of_config.data, "train").labels
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = generator_networks(spec.recipe.build_networks(labels, spec.config.model))
    for network in networks.values():
        network.double().eval()
    return kind(networks, spec, labels, 7)


class Painter(TrainedModel):
    """Draws what the label of the target says."""

    blind_to = ""  # the name of an attribute that is drawn as in the source

    def translate(self, x, conditioning):
        sources = x.repeat_interleave(len(conditioning) // len(x), 0)
        outputs = map(self.paint, sources, conditioning.tolist())
        return torch.stack([torch.from_numpy(pixels) / 127.5 - 1 for pixels in outputs])

    def paint(self, source, conditioning):
        names = [*self.labels.names, "is_tile", "is_bar"]
        labels = dict(zip(names, conditioning, strict=False))  # one dataset has no mask
        if labels.get("is_bar", "upright" in labels):
            return bar(labels["upright"])
        if self.blind_to == "bright":
            labels["bright"] = source.max() > 0.5
        return tile(labels["red"], labels["green"], labels["bright"])


class Copier(TrainedModel):
    """Returns the sources."""

    def translate(self, x, conditioning):
        return x


def shorten_training(monkeypatch, steps=30):
    """Shorten the training of classifiers: these pictures are easy to tell apart."""
    short = dataclasses.replace(protocols.DEMO_CLASSIFIER, steps=steps, batch_size=16)
    monkeypatch.setattr(protocols, "DEMO_CLASSIFIER", short)
    monkeypatch.setattr(protocols.demo_network, "STEPS", 20)
