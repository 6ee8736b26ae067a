"""The model card of a model folder: README.md, with the front matter of the Hugging Face hub."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import yaml

from stargan_dist.config import Config
from stargan_dist.data.labels import Labels
from stargan_dist.models.saved import SavedModel
from stargan_dist.runs.checkpoint import tensors_of_network

UNKNOWN = "unknown"  # license
NETWORKS = {
    "G": "generator", "F": "mapping network", "E": "style encoder", "D": "discriminator",
    "C": "discriminator of contents",
}  # fmt: skip
SHOWN_DOMAINS = 50


@dataclass(frozen=True)
class Card:
    """What a card says.

    Attributes:
        title: of the card.
        recipe: name of the recipe.
        description: of the recipe.
        image_size: in pixels.
        domains: names of the labels.
        target: arguments of `Translator.translate` that name one of them.
        target_options: options of `stargan_dist.translate` that name it.
        diverse: outputs depend on a seed.
        guided_by_references: outputs can depend on a reference.
        step: iterations of the training; 0: not known.
        parameters: number of parameters by the letter of the network.
        data: names of the folders of shards.
        license: an identifier of the hub.
        metrics: headline and table of each evaluation.
        grid: file of the sample grid; empty: there is none.
        address: where others find the model.
    """

    title: str
    recipe: str
    description: str
    image_size: int
    domains: Sequence[str]
    target: str
    target_options: Sequence[str]
    diverse: bool
    guided_by_references: bool
    step: int
    parameters: dict[str, int]
    data: Sequence[str]
    license: str = UNKNOWN
    metrics: Sequence[tuple[str, str]] = field(default_factory=tuple)
    grid: str = ""
    address: str = "FOLDER"


def of_model(model: SavedModel) -> Card:
    """Return the card of a model, without what the model does not say itself."""
    spec, labels = model.spec, model.labels
    return Card(
        title=f"Image translation: {_few(labels.names, 5)}",
        recipe=model.config.recipe,
        description=spec.recipe.description,
        image_size=spec.config.model.image_size,
        domains=labels.names,
        target=_target(labels),
        target_options=_target_options(labels),
        diverse=spec.recipe.is_diverse,
        guided_by_references=spec.recipe.guided_by_references,
        step=model.step,
        parameters={
            letter: sum(t.numel() for t in tensors_of_network(letter, model.tensors).values())
            for letter in NETWORKS
            if letter in model.letters
        },
        data=data_names(model.config),
    )


def data_names(config: Config) -> list[str]:
    """Return the names of the folders of shards: not their URLs, which may hold secrets."""
    urls = [source.shards.partition("?")[0] for source in config.data.all_sources.values()]
    return [PurePosixPath(url).name for url in urls if url]


def _few(names: Sequence[str], count: int) -> str:
    rest = len(names) - count
    return ", ".join(names[:count]) + (f" and {rest} more" if rest > 0 else "")


def text(card: Card) -> str:
    """Return the text of a card, Markdown after YAML."""
    sections = [_title(card), _model(card), _data(card), _metrics(card), _use(card), _limits(card)]
    return "\n\n".join([_front_matter(card), *sections]) + "\n"


def _front_matter(card: Card) -> str:
    fields = {
        "license": card.license,
        "library_name": "stargan_dist",
        "pipeline_tag": "image-to-image",
        "tags": ["image-to-image", "image-translation", "gan", "stargan", f"recipe-{card.recipe}"],
    }
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def _title(card: Card) -> str:
    grid = (
        f"![Sources on the left, translated]({card.grid})"
        if card.grid
        else "There is no sample grid: the images of its data were not at hand."
    )
    return f"# {card.title}\n\n{grid}"


def _table(rows: dict[str, str]) -> str:
    lines = [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _model(card: Card) -> str:
    sizes = [f"{NETWORKS[letter]} {count:,}" for letter, count in card.parameters.items()]
    rows = {
        "recipe": f"`{card.recipe}`: {card.description}",
        "image size": f"{card.image_size} × {card.image_size} pixels",
        "training": f"{card.step:,} iterations" if card.step else "iterations not known",
        "parameters": f"{sum(card.parameters.values()):,} ({', '.join(sizes)})",
    }
    return f"## Model\n\n{_table(rows)}"


def _data(card: Card) -> str:
    names = ", ".join(f"`{name}`" for name in card.data) or "Shards that are not known"
    labels = f"{len(card.domains)} labels: {_few(card.domains, SHOWN_DOMAINS)}"
    return f"## Data\n\n{names}, with {labels}."


def _metrics(card: Card) -> str:
    if not card.metrics:
        return "## Metrics\n\nThis step was not evaluated."
    blocks = [f"{headline}:\n\n```\n{table}\n```" for headline, table in card.metrics]
    return "\n\n".join(["## Metrics", *blocks])


def _use(card: Card) -> str:
    guides = [", seed=1" if card.diverse else ""]
    if card.guided_by_references:
        guides.append(', reference="other.jpg"')
    calls = [f'image = translator.translate("photo.jpg", {card.target}{g})' for g in guides]
    return f"""\
## Use

In Python, with stargan_dist installed:

```python
from stargan_dist import Translator

translator = Translator.from_pretrained({_quoted(card.address)})
{chr(10).join(calls)}
```

On the command line:

```
{_command(card)}
```"""


def _command(card: Card) -> str:
    """Return a command that translates an image."""
    words = ["python", "-m", "stargan_dist.translate", card.address, "photo.jpg", "translations"]
    return shlex.join([*words, *card.target_options])


def _target(labels: Labels) -> str:
    """Return arguments of `Translator.translate` that name the last label."""
    space = labels.spaces[-1]
    if not space.binary:
        return f"domain={_quoted(labels.names[-1])}"
    target = f"attributes={{{_quoted(space.columns[-1])}: True}}"
    return f"{target}, data_source={_quoted(space.name)}" if space.name else target


def _target_options(labels: Labels) -> list[str]:
    """Return options of `stargan_dist.translate` that name the last label."""
    space = labels.spaces[-1]
    source = ["--data-source", space.name] if space.name and space.binary else []
    if space.binary:
        return ["--attributes", f"{space.columns[-1]}=1", *source]
    return ["--domain", labels.names[-1]]


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def _limits(card: Card) -> str:
    lines = [
        "- It translates into the labels above alone, and takes every image for one of them.",
        f"- Images are scaled to {card.image_size} pixels. Those unlike its data (subject,",
        "  framing, background) are translated badly.",
        "- It has the biases of its data: what occurs together there is changed together.",
        "- Outputs are synthetic: mark them as such, and do not use them to deceive or to judge",
        "  people.",
    ]
    if card.license == UNKNOWN:
        lines.append("- Its license is not known: ask its authors before you use or share it.")
    return "\n".join(["## Limits", "", *lines])
