"""Labels, compared with values written out by hand."""

import json
import math

import numpy as np
import pytest
import torch

from stargan_dist.data.labels import Labels, LabelSpace, domain_labels
from stargan_dist.errors import UserError

ATTRIBUTES = ("black", "blond", "brown", "male", "young")
EMOTIONS = ("angry", "contemptuous", "disgusted", "fearful", "happy", "neutral", "sad", "surprised")
CELEBA = LabelSpace("celeba", ATTRIBUTES, binary=True, exclusive=(("black", "blond", "brown"),))
RAFD = LabelSpace("rafd", EMOTIONS)
BOTH = Labels((CELEBA, RAFD))
BLOND_WOMAN = [0, 1, 0, 0, 1]
HAPPY = [0, 0, 0, 0, 1, 0, 0, 0]


def test_the_numbers_of_labels_and_the_length_of_vectors():
    assert (BOTH.num_labels, BOTH.vector_dim, BOTH.by_domain) == (13, 15, False)
    assert (Labels((CELEBA,)).vector_dim, Labels((CELEBA,)).by_domain) == (5, False)
    assert (Labels((RAFD,)).vector_dim, Labels((RAFD,)).by_domain) == (8, True)
    assert not Labels((LabelSpace("rafd", EMOTIONS, key="emotion"),)).by_domain
    assert domain_labels(["cat", "dog"]).by_domain


def test_a_vector_holds_the_label_of_one_source_and_its_mask():
    celeba = BOTH.vector(0, np.array(BLOND_WOMAN, np.float32))
    rafd = BOTH.vector(1, np.array(HAPPY, np.float32))
    assert celeba.dtype == rafd.dtype == np.float32
    assert celeba.tolist() == [0, 1, 0, 0, 1] + [0] * 8 + [1, 0]
    assert rafd.tolist() == [0] * 5 + [0, 0, 0, 0, 1, 0, 0, 0] + [0, 1]
    assert Labels((CELEBA,)).vector(0, np.array(BLOND_WOMAN)).tolist() == [0, 1, 0, 0, 1]


def test_domain_indices_become_one_hot_vectors():
    labels = domain_labels(["cat", "dog", "wild"])
    c = labels.to_vectors(torch.tensor([2, 0]), torch.float64)
    assert c.dtype == torch.float64
    assert c.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert labels.to_vectors(c, torch.float32).tolist() == c.tolist()


def literal_bce(logits, truth):
    return sum(
        math.log1p(math.exp(-logit)) if t else math.log1p(math.exp(logit))
        for logit, t in zip(logits, truth, strict=True)
    )


def literal_ce(logits, category):
    return math.log(sum(math.exp(logit) for logit in logits)) - logits[category]


def test_the_loss_of_an_image_covers_the_columns_of_its_source():
    logits = torch.randn(3, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    columns = [(0, BLOND_WOMAN), (1, HAPPY), (0, [1, 0, 0, 1, 0])]
    y = torch.tensor(np.stack([BOTH.vector(n, np.array(c, np.float32)) for n, c in columns]))
    face, happy, man = logits.tolist()
    expected = (
        literal_bce(face[:5], BLOND_WOMAN)
        + literal_ce(happy[5:], 4)
        + literal_bce(man[:5], [1, 0, 0, 1, 0])
    ) / 3
    assert BOTH.classification_loss(logits, y).item() == pytest.approx(expected, rel=1e-12)


def test_unknown_columns_have_no_gradient():
    logits = torch.randn(2, 13, dtype=torch.float64).requires_grad_()
    columns = [(0, BLOND_WOMAN), (1, HAPPY)]
    y = torch.tensor(np.stack([BOTH.vector(n, np.array(c, np.float32)) for n, c in columns]))
    BOTH.classification_loss(logits, y).backward()
    assert (logits.grad[0, 5:] == 0).all() and (logits.grad[1, :5] == 0).all()
    assert (logits.grad[0, :5] != 0).all() and (logits.grad[1, 5:] != 0).all()


def test_the_loss_of_domain_labels_is_the_cross_entropy():
    logits = torch.randn(4, 3, dtype=torch.float64)
    y = torch.tensor([0, 2, 1, 1])
    expected = torch.nn.functional.cross_entropy(logits, y)
    loss = domain_labels(["a", "b", "c"]).classification_loss(logits, y)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def targets_of(labels, y):
    return [(name, target.tolist()) for name, target in labels.targets(y)]


def test_targets_of_attributes_flip_one_or_select_one_of_a_group():
    assert targets_of(Labels((CELEBA,)), torch.tensor([0.0, 1, 0, 0, 1])) == [
        ("black", [1, 0, 0, 0, 1]),
        ("blond", [0, 1, 0, 0, 1]),
        ("brown", [0, 0, 1, 0, 1]),
        ("male", [0, 1, 0, 1, 1]),
        ("young", [0, 1, 0, 0, 0]),
    ]


def test_targets_of_domains_are_domain_indices():
    targets = domain_labels(["cat", "dog"]).targets(torch.tensor(1))
    assert [(name, y.item(), y.dtype) for name, y in targets] == [
        ("cat", 0, torch.int64),
        ("dog", 1, torch.int64),
    ]


def test_targets_of_several_sources():
    flips = LabelSpace("faces", ("male", "smiling"), binary=True)
    shapes = LabelSpace("shapes", ("round", "male"))
    labels = Labels((flips, shapes))
    face = torch.tensor(labels.vector(0, np.array([1.0, 0.0], np.float32)))
    assert targets_of(labels, face) == [
        ("faces/male", [0, 0, 0, 0, 1, 0]),
        ("smiling", [1, 1, 0, 0, 1, 0]),
        ("round", [0, 0, 1, 0, 0, 1]),
        ("shapes/male", [0, 0, 0, 1, 0, 1]),
    ]
    shape = torch.tensor(labels.vector(1, np.array([0.0, 1.0], np.float32)))
    assert targets_of(labels, shape) == [
        ("faces/male", [1, 0, 0, 0, 1, 0]),
        ("smiling", [0, 1, 0, 0, 1, 0]),
        ("round", [0, 0, 1, 0, 0, 1]),
        ("shapes/male", [0, 0, 0, 1, 0, 1]),
    ]


@pytest.mark.parametrize("true", [True, 1, "1", "true", " True", 1.0])
@pytest.mark.parametrize("false", [False, 0, -1, "0", "-1", "False", -1.0])
def test_binary_values_may_be_booleans_numbers_or_text(true, false):
    space = LabelSpace("s", ("a", "b"), binary=True)
    assert space.encode({"a": true, "b": false, "c": 7}, "").tolist() == [1, 0]


def test_categories_are_named_by_an_attribute_or_the_domain():
    assert LabelSpace("s", ("1", "2"), key="who").encode({"who": 2}, "x").tolist() == [0, 1]
    assert LabelSpace("s", ("x", "y")).encode({}, "x").tolist() == [1, 0]


@pytest.mark.parametrize(
    ("space", "attributes", "message"),
    [
        (LabelSpace("s", ("a",), binary=True), {}, "no attribute a"),
        (LabelSpace("s", ("a",), binary=True), {"a": 2}, "attribute a is 2"),
        (LabelSpace("s", ("a",), binary=True), {"a": 0.5}, "attribute a is 0.5"),
        (LabelSpace("s", ("a",), binary=True), {"a": float("nan")}, "attribute a is nan"),
        (LabelSpace("s", ("a",), key="k"), {"k": "b"}, "attribute k is 'b', not one of a"),
        (LabelSpace("s", ("a",)), {}, "its domain is 'x', not one of a"),
    ],
)
def test_missing_and_unknown_values_are_rejected(space, attributes, message):
    with pytest.raises(UserError, match=message):
        space.encode(attributes, "x")


@pytest.mark.parametrize("labels", [BOTH, domain_labels(["cat", "dog"])])
def test_labels_survive_a_round_trip_through_json(labels):
    assert Labels.from_dict(json.loads(json.dumps(labels.to_dict()))) == labels
