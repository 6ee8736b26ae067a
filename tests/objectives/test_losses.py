"""Loss functions against closed forms."""

import pytest
import torch
import torch.nn.functional as F

from stargan_dist.objectives import losses


def test_logistic_losses_equal_binary_cross_entropy_with_logits():
    logits = torch.tensor([-3.0, 0.0, 2.5, 40.0]).double()
    real = F.binary_cross_entropy_with_logits(logits, torch.ones(4).double())
    fake = F.binary_cross_entropy_with_logits(logits, torch.zeros(4).double())
    torch.testing.assert_close(losses.logistic_real(logits), real)
    torch.testing.assert_close(losses.logistic_fake(logits), fake)


def test_r1_of_a_linear_discriminator_is_half_its_squared_weight():
    w = torch.randn(3, 4, 4, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    penalty = losses.r1((x * w).sum((1, 2, 3)), x)
    torch.testing.assert_close(penalty, 0.5 * w.square().sum())
    penalty.backward()  # training differentiates the penalty again
    torch.testing.assert_close(w.grad, w.detach())


def test_r1_is_averaged_over_the_batch():
    x = torch.tensor([[[[1.0]]], [[[3.0]]]], requires_grad=True)
    assert losses.r1(x.square().sum((1, 2, 3)), x).item() == pytest.approx(0.5 * (4 + 36) / 2)


def test_l1_is_the_mean_absolute_difference():
    assert losses.l1(torch.tensor([1.0, -1.0]), torch.tensor([0.0, 1.0])).item() == 1.5


def test_linear_decay_falls_to_zero_and_stays_there():
    assert [2 * losses.linear_decay(step, 0, 4) for step in range(6)] == [
        2.0,
        1.5,
        1.0,
        0.5,
        0.0,
        0.0,
    ]
    assert [losses.linear_decay(step, 2, 4) for step in (0, 2, 3, 4, 9)] == [1, 1, 0.5, 0, 0]
