import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.image.fid import FrechetInceptionDistance
from torchvision import transforms
from torchvision.models import inception_v3

from baselines import random_weights as weights
from stargan_dist.errors import UserError
from stargan_dist.evaluation.metrics.feature_extractors import (
    PaperInception,
    TensorFlowInception,
    alexnet_lpips,
)


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), np.uint8))


def test_paper_features_equal_a_literal_pipeline_through_pil(images):
    """The literal pipeline: PIL's resize, torchvision's transforms, and a hook that records the
    pooled features."""
    state = weights.paper_inception()
    network = inception_v3(weights=None, transform_input=False, init_weights=False).eval()
    network.load_state_dict(state)
    recorded = []
    network.avgpool.register_forward_hook(lambda *args: recorded.append(args[2].flatten(1)))
    literal = transforms.Compose([
        transforms.Resize((299, 299)),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    with torch.no_grad():
        for image in images:
            pil_image = Image.fromarray(image.permute(1, 2, 0).numpy())
            network(literal(pil_image)[None])
        ours = PaperInception(weights.make_weights("Inception", state))(images)
    assert ours.shape == (2, 2048)
    assert (ours - torch.cat(recorded)).norm() < 1e-5 * ours.norm()


def test_clean_features_equal_those_of_torchmetrics(images, tmp_path):
    state = weights.tf_inception()
    file = weights.write(tmp_path / "weights.pth", state)
    reference = FrechetInceptionDistance(2048, feature_extractor_weights_path=str(file)).inception
    ours = TensorFlowInception(weights.make_weights("Inception", state))
    with torch.no_grad():
        expected = reference(images)
        assert (ours(images) - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize(
    ("network", "state"),
    [
        (PaperInception, weights.tf_inception),
        (TensorFlowInception, weights.paper_inception),
        (alexnet_lpips, weights.paper_inception),
    ],
)
def test_weights_of_another_network_are_rejected_by_file_and_network(network, state):
    with pytest.raises(UserError, match=r"random\.pth does not hold the weights of a network"):
        network(weights.make_weights("a network", state()))
