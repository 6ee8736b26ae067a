import dataclasses

import numpy as np
import pytest
import torch

from stargan_dist.data.labels import LabelSpace
from stargan_dist.evaluation.metrics.classifier import (
    DEMO_CLASSIFIER,
    RESNET_18,
    Classifier,
    ClassifierTraining,
    draw_positions,
)

CATEGORIES = LabelSpace("kinds", ("a", "b", "c"))
ATTRIBUTES = LabelSpace("faces", ("a", "b", "c"), binary=True)


def train(form, space, steps=2):
    """Train on random images."""
    form = dataclasses.replace(form, steps=steps, batch_size=4)
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(256, size=(12, 3, 40, 40), dtype=np.uint8))
    columns = np.eye(3, dtype=np.uint8)[rng.integers(3, size=12)]
    training = ClassifierTraining(form, space, torch.device("cpu"))
    for step in range(steps):
        chosen = draw_positions(form, 12, step)
        training.step(images[chosen], columns[chosen])
    return training, images


@pytest.mark.parametrize("form", [RESNET_18, DEMO_CLASSIFIER], ids=lambda form: form.network)
def test_a_training_depends_on_the_images_alone(form):
    """Random numbers that are drawn elsewhere neither change it nor are changed by it."""
    first, images = train(form, ATTRIBUTES)
    torch.manual_seed(5)
    expected_draw = torch.rand(3)
    torch.manual_seed(5)
    second, _ = train(form, ATTRIBUTES)
    assert torch.equal(torch.rand(3), expected_draw)
    state = first.state()
    assert all(torch.equal(state[name], t) for name, t in second.state().items())
    classifier = Classifier(form, ATTRIBUTES, state)
    logits = classifier(images)
    assert logits.shape == (12, 3)
    torch.testing.assert_close(classifier(images[:1]), logits[:1])  # not of the batch's statistics


def test_the_learning_rate_decays_to_0():
    training, _ = train(DEMO_CLASSIFIER, CATEGORIES, steps=4)
    (group,) = training.optimizer.param_groups
    assert group["lr"] == pytest.approx(DEMO_CLASSIFIER.learning_rate / 4)


class Logits(torch.nn.Module):
    """Returns given logits for any images."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images):
        return self.logits


@pytest.mark.parametrize(
    ("space", "value", "expected"),
    [
        (ATTRIBUTES, 1, [False, False, True]),
        (ATTRIBUTES, 0, [True, True, False]),
        (CATEGORIES, 1, [False, True, True]),
    ],
)
def test_an_attribute_is_read_from_its_logit_and_a_category_from_the_largest(
    space, value, expected
):
    form = dataclasses.replace(DEMO_CLASSIFIER, build=lambda _: Logits(LOGITS))
    classifier = Classifier(form, space, {})
    images = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    assert classifier.misses(images, 1, value).tolist() == expected


LOGITS = [[1.0, 2.0, -1.0], [1.0, 0.5, 3.0], [-2.0, -1.0, 0.5]]
