"""The loop of a fit: iterations, checkpoints, and the error on validation images."""

from collections.abc import Callable
from contextlib import closing

from torch import Tensor

from stargan_dist.console.progress import progress_bar
from stargan_dist.errors import UserError
from stargan_dist.faces import fit_checkpoint
from stargan_dist.faces.fitting import Fit
from stargan_dist.faces.samples import Samples


def run(
    fit: Fit, samples: Samples, checkpoint: str, every: int, stopped: Callable[[], bool]
) -> bool:
    """Do all iterations that are left. The progress line has the error on validation images.

    Args:
        fit: new, or resumed.
        samples: images with their landmarks.
        checkpoint: file or URL, written every `every` steps, when stopped, and at the end.
        every: steps between checkpoints, and between measurements of the error.
        stopped: asked after each iteration.

    Returns:
        False if it was stopped before the end.

    Raises:
        UserError: an image or its landmarks cannot be used, the checkpoint cannot be written, or
            the loss is not finite.
    """
    settings, steps = fit.settings, range(fit.step, fit.settings.steps)
    with (
        progress_bar(len(steps), "steps", description="fitting") as progress,
        closing(samples.training(steps, settings.batch_size, settings.seed)) as batches,
    ):
        for batch in batches:
            loss = fit.update(batch)
            progress.update(1)
            is_last, stop = fit.step == settings.steps, stopped()
            if is_last or stop or fit.step % every == 0:
                _check(loss, fit)
                fit_checkpoint.save(checkpoint, fit)
                if is_last or stop:
                    return is_last
                progress.set_description_str(f"fitting: {error_in_words(fit, samples)}")
    return True


def _check(loss: Tensor, fit: Fit) -> None:
    if not loss.isfinite():
        raise UserError(f"the loss is not finite at step {fit.step}: use a lower --lr")


def error_in_words(fit: Fit, samples: Samples) -> str:
    """Return the mean error on the validation images."""
    errors = fit.errors(samples.validation(fit.settings.batch_size))
    return f"mean error {errors.nanmean():.2f} px of {fit.settings.input_size}"
