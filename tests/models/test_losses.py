"""Losses of a pack against torch's, values and gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stagetree.models.losses import loss_gradient, loss_sums

WEIGHTS = [1.0, 2.0, 0.5, 3.0]


def cross_entropy(**settings) -> dict:
    return {"name": "cross_entropy", "class_weights": [], **settings}


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        (cross_entropy(), nn.CrossEntropyLoss()),
        (cross_entropy(label_smoothing=0.1), nn.CrossEntropyLoss(label_smoothing=0.1)),
        (
            cross_entropy(class_weights=WEIGHTS, label_smoothing=0.1),
            nn.CrossEntropyLoss(torch.tensor(WEIGHTS), label_smoothing=0.1),
        ),
        ({"name": "nll", "class_weights": WEIGHTS}, nn.NLLLoss(torch.tensor(WEIGHTS))),
        ({"name": "mse"}, nn.MSELoss()),
    ],
    ids=lambda value: str(value)[:40],
)
def test_losses_and_their_gradients_are_those_of_torch(loss, reference):
    logits = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 4, (3, 8), generator=torch.Generator().manual_seed(1))
    total, weight, grad = loss_gradient(logits, labels, loss)
    for k in range(3):
        member = logits[k].clone().requires_grad_()
        outputs = member.log_softmax(-1) if loss["name"] == "nll" else member
        target = F.one_hot(labels[k], 4).float() if loss["name"] == "mse" else labels[k]
        expected = reference(outputs, target)
        expected.backward()
        torch.testing.assert_close((total / weight)[k], expected)
        torch.testing.assert_close(grad[k], member.grad)
    sums, weights = loss_sums(logits, labels, loss)
    assert torch.equal(sums / weights, total / weight)


def test_a_member_has_the_bits_that_it_has_alone():
    logits = torch.randn(5, 10, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 4, (5, 10), generator=torch.Generator().manual_seed(1))
    weighted = cross_entropy(class_weights=WEIGHTS, label_smoothing=0.1)
    for loss in (weighted, {"name": "nll", "class_weights": []}, {"name": "mse"}):
        total, _, grad = loss_gradient(logits, labels, loss)
        for k in range(5):
            alone, _, own = loss_gradient(logits[k : k + 1], labels[k : k + 1], loss)
            assert torch.equal(alone[0], total[k])
            assert torch.equal(own[0], grad[k])
