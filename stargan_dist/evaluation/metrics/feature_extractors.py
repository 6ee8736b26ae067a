"""The networks that images are measured with."""

import io

import torch
from torch import Tensor, nn
from torchvision.models import inception_v3

from stargan_dist.errors import UserError
from stargan_dist.evaluation.metrics.lpips import Lpips
from stargan_dist.evaluation.metrics.pretrained import Weights
from stargan_dist.evaluation.metrics.resize import resize_bilinear

INCEPTION_PIXELS = 299


class PaperInception(nn.Module):
    """The paper's: uint8 (N, 3, H, H) -> pooled features of torchvision's Inception-v3 (N, 2048).

    Images are resized as PIL does it, to 8 bits, and normalised by the mean and deviation of
    ImageNet, which torchvision's own preprocessing of these weights does not do.
    """

    num_features = 2048
    mean: Tensor
    deviation: Tensor

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.network = inception_v3(weights=None, transform_input=False, init_weights=False)
        _fill(self.network, weights)
        self.network.AuxLogits = None
        self.network.fc = nn.Identity()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
        self.requires_grad_(False).eval()
        self.network.to(memory_format=torch.channels_last)  # 1.4 times as fast on a CPU

    def forward(self, images: Tensor) -> Tensor:
        resized = resize_bilinear(images, INCEPTION_PIXELS).float() / 255
        return self.network((resized - self.mean) / self.deviation)


class TensorFlowInception(nn.Module):
    """The network of the original FID: uint8 (N, 3, H, H) -> pooled features (N, 2048).

    torch-fidelity's copy of it, with torchmetrics' antialiased resize.
    """

    num_features = 2048

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        try:
            import torch_fidelity  # noqa: F401
            from torchmetrics.image.fid import NoTrainInceptionV3
        except ImportError as error:
            raise UserError(
                "protocol clean needs torch-fidelity: pip install 'stargan_dist[clean]'"
            ) from error
        # It would unpickle whatever a file holds; ours was loaded safely and is written again.
        file = io.BytesIO()
        torch.save(weights.state, file)
        file.seek(0)
        try:
            self.network = NoTrainInceptionV3("inception-v3-compat", ["2048"], file)
        except RuntimeError as error:
            raise _unfit(weights, error) from error
        self.requires_grad_(False).eval()
        self.network.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


def _fill(network: nn.Module, weights: Weights) -> None:
    try:
        network.load_state_dict(weights.state)
    except RuntimeError as error:
        raise _unfit(weights, error) from error


def _unfit(weights: Weights, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{weights.file} does not hold the weights of {weights.network}: {reason}")


def alexnet_lpips(weights: Weights) -> Lpips:
    try:
        return Lpips(weights.state)
    except (RuntimeError, KeyError) as error:
        raise _unfit(weights, error) from error
