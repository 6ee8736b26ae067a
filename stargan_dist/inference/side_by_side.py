"""One picture translated by several models, with the same target and guide."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from stargan_dist.data import transforms
from stargan_dist.data.batch import to_unit
from stargan_dist.data.labels import Labels
from stargan_dist.errors import UserError
from stargan_dist.inference import grids
from stargan_dist.inference.translator import Translator

MAX_OUTPUTS = 8  # seeds or references of a request


class Target(NamedTuple):
    """What pictures can be translated to: a domain, or any attributes of a data source.

    Attributes:
        attributes: names of the attributes; empty: a domain.
        data_source: the data source that has the attributes.
    """

    attributes: tuple[str, ...] = ()
    data_source: str = ""


def targets_of(labels: Labels) -> dict[str, Target]:
    """Return the targets of a model by name. All attributes of a data source are one target."""
    targets: dict[str, Target] = {}
    for index, space in enumerate(labels.spaces):
        if space.binary:
            name = f"attributes of {space.name}" if space.name else "attributes"
            targets[name] = Target(space.columns, space.name)
        else:
            names = labels.names[labels.column_slice(index)]
            targets |= dict.fromkeys(names, Target())
    return targets


@dataclass(frozen=True)
class Request:
    """What a picture is translated to, and how.

    Attributes:
        picture: the source.
        target: name of a target of `targets_of`.
        attributes: attributes that the output has, if the target has attributes.
        seeds: of the styles; unused if there are references.
        references: pictures whose style the outputs have.
        strength: of the style; see `Translator.translate`.
        fit: see `Translator.translate`.
    """

    picture: Image.Image
    target: str
    attributes: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    references: Sequence[Image.Image] = field(default_factory=tuple)
    strength: float = 1.0
    fit: str = "crop"

    @property
    def guides(self) -> list[str]:
        """A name for each output."""
        if self.references:
            return [f"reference {number}" for number in range(1, len(self.references) + 1)]
        return [f"seed {seed}" for seed in self.seeds]


class Outcome(NamedTuple):
    """Translations by one model, one per guide; or the reason why there are none."""

    images: list[Image.Image]
    fault: str = ""


class SideBySide:
    """Translates a picture with several models. Models need not have the same domains.

    Args:
        translators: the models by the name that is shown.
    """

    def __init__(self, translators: Mapping[str, Translator]) -> None:
        self.translators = dict(translators)
        models = [translator.model for translator in translators.values()]
        self.diverse = any(model.diverse for model in models)
        self.guided_by_references = any(model.guided_by_references for model in models)
        self.targets: dict[str, list[str]] = {}
        for model in models:
            for name, target in targets_of(model.labels).items():
                known = self.targets.setdefault(name, [])
                known += [each for each in target.attributes if each not in known]

    def translate(
        self, request: Request, names: Collection[str] | None = None
    ) -> dict[str, Outcome]:
        """Translate with each model. A model that cannot do it has a fault instead of images.

        Args:
            names: the models that translate. None: all.

        Raises:
            UserError: too many outputs are requested.
        """
        if len(request.guides) > MAX_OUTPUTS:
            raise UserError(f"{len(request.guides)} outputs are more than {MAX_OUTPUTS}")
        return {
            name: _outcome(translator, request)
            for name, translator in self.translators.items()
            if names is None or name in names
        }


def _outcome(translator: Translator, request: Request) -> Outcome:
    try:
        return Outcome(_translate(translator, request))
    except UserError as error:
        return Outcome([], str(error))


def _translate(translator: Translator, request: Request) -> list[Image.Image]:
    arguments = _target(translator, request) | _guide(translator, request)
    outputs: list[Image.Image] = translator.translate(request.picture, fit=request.fit, **arguments)
    return outputs


def _target(translator: Translator, request: Request) -> dict[str, Any]:
    """Return the arguments of `Translator.translate` that name the target."""
    targets = targets_of(translator.model.labels)
    if request.target not in targets:
        raise UserError(f"this model has no {request.target}: it has {', '.join(targets)}")
    target = targets[request.target]
    if not target.attributes:
        return {"domain": request.target}
    unknown = [name for name in request.attributes if name not in target.attributes]
    if unknown:
        raise UserError(f"this model has no attribute {unknown[0]}")
    attributes = dict.fromkeys(request.attributes, True)
    return {"attributes": attributes, "data_source": target.data_source}


def _guide(translator: Translator, request: Request) -> dict[str, Any]:
    """Return the arguments of `Translator.translate` that guide it."""
    model = translator.model
    if not model.diverse:
        return {"seed": request.seeds[:1]}
    if request.references and model.guided_by_references:
        return {"reference": list(request.references), "strength": request.strength}
    if request.references:
        raise UserError("this model takes no references")
    return {"seed": list(request.seeds), "strength": request.strength}


def sheet(request: Request, outcomes: Mapping[str, Outcome], side: int) -> Image.Image:
    """Draw a row per model, the source and its outputs; above them the references.

    Args:
        side: of a cell, in pixels: outputs are centred in it, the source and references reduced.
    """
    rows: list[list[Image.Image | None]] = []
    if request.references:
        rows.append([None, *request.references])
    for outcome in outcomes.values():
        if outcome.images:
            missing = len(request.guides) - len(outcome.images)
            rows.append([request.picture, *outcome.images, *[None] * missing])
    cells = [torch.stack([_cell(image, side) for image in row]) for row in rows]
    return grids.image_grid(torch.stack(cells), ["source", *request.guides])


def _cell(image: Image.Image | None, side: int) -> Tensor:
    """Return an image in the middle of a white square, (3, side, side) in [-1, 1]."""
    square = Image.new("RGB", (side, side), "white")
    if image is not None:
        small = image.copy()
        small.thumbnail((side, side))
        square.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return to_unit(torch.from_numpy(transforms.to_array(square)))
