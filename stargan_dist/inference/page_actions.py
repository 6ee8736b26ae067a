"""Functions that the controls of the page call. They need no Gradio."""

import html
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from stargan_dist import storage
from stargan_dist.data import transforms
from stargan_dist.errors import UserError
from stargan_dist.inference import grids
from stargan_dist.inference.side_by_side import (
    MAX_OUTPUTS,
    Outcome,
    Request,
    SideBySide,
    sheet,
)

SEEDS, REFERENCES = "random styles", "reference pictures"  # guides
NOTHING = Outcome([])
FOLDER = "GRADIO_TEMP_DIR"  # environment variable: folder of the files that are served


class Actions:
    """Functions that the controls of the page call.

    Args:
        models: the models, a column each.
        max_pixels: of a picture that visitors upload. Larger ones are refused by their header.
    """

    def __init__(self, models: SideBySide, max_pixels: int = transforms.MAX_PIXELS) -> None:
        self.models, self.max_pixels = models, max_pixels

    def translate(
        self,
        source: str | None,
        target: str,
        attributes: Sequence[str],
        guide: str,
        seed: float,
        count: float,
        references: Sequence[tuple[str, Any]] | None,
        strength: float,
        fit: str,
        models: Sequence[str],
    ) -> list[Any]:
        """Translate a picture with the chosen models.

        Args:
            source: path of the picture.
            target: name of a target; see `SideBySide`.
            attributes: attributes that the outputs have, if the target has attributes.
            guide: SEEDS or REFERENCES.
            seed: the first seed.
            count: number of seeds.
            references: paths of reference pictures, and their captions.
            strength: of the style.
            fit: a key of `pictures.FITS`.
            models: names of the chosen models.

        Returns:
            For each model a note, Markdown, and its outputs with captions, of which a model that is
            not chosen has none; last the path of a PNG with all of them, or None if there are none.

        Raises:
            UserError: a picture or a model is missing, a picture cannot be read, or there are too
                many.
        """
        paths = [path for path, _ in references or []] if guide == REFERENCES else []
        if not is_complete(source, guide, paths):
            raise UserError("add a picture" if not source else "add a reference picture")
        if not models:
            raise UserError("choose a model")
        if len(paths) > MAX_OUTPUTS:
            raise UserError(f"{len(paths)} references are more than {MAX_OUTPUTS}: remove some")
        request = Request(
            picture=self._read(str(source), "the picture"),
            target=target,
            attributes=attributes,
            seeds=range(int(seed), int(seed) + int(count)),
            references=[self._read(path, f"reference {n}") for n, path in enumerate(paths, 1)],
            strength=float(strength),
            fit=fit,
        )
        return self._results(request, models)

    def _results(self, request: Request, models: Sequence[str]) -> list[Any]:
        outcomes = self.models.translate(request, models)
        results: list[Any] = []
        for name, translator in self.models.translators.items():
            images, fault = outcomes.get(name, NOTHING)
            captions = request.guides if translator.model.diverse else [""]
            results += [self.note(name, fault), [*zip(images, captions, strict=False)]]
        if not any(outcome.images for outcome in outcomes.values()):
            return [*results, None]
        side = max(self.models.translators[name].image_size for name in outcomes)
        return [*results, save_png(sheet(request, outcomes, side))]

    def clear(self) -> list[Any]:
        """Return what `translate` returns, without outputs."""
        results: list[Any] = []
        for name in self.models.translators:
            results += [self.note(name), []]
        return [*results, None]

    def note(self, name: str, fault: str = "") -> str:
        """Return what stands above the outputs of a model, Markdown."""
        translator = self.models.translators[name]
        step, size = translator.model.step, translator.image_size
        about = f"**{html.escape(name)}** · {size} × {size} pixels" + (step > 0) * f" · step {step}"
        return about + (f"\n\n**{html.escape(fault)}**" if fault else "")

    def _read(self, path: str, what: str) -> Image.Image:
        try:
            return transforms.decode(storage.read_bytes(path), self.max_pixels)
        except (OSError, UserError) as error:
            raise UserError(f"{what} cannot be used: {error}") from error


def is_complete(source: Any, guide: str, references: Any) -> bool:
    """Return whether the inputs are enough for a translation."""
    return bool(source) and (guide != REFERENCES or bool(references))


def save_png(image: Image.Image) -> str:
    """Write an image to a folder of its own; return its path."""
    path = Path(tempfile.mkdtemp(dir=os.environ.get(FOLDER))) / "translations.png"
    path.write_bytes(grids.to_png(image))
    return str(path)
