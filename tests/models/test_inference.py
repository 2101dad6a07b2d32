"""The numpy network says what the torch module says."""

import numpy as np
import pytest
import torch

from stagetree.data.cache import DataInfo
from stagetree.models.inference import ACTIVATIONS as OWN
from stagetree.models.inference import Network, confusion
from stagetree.models.mlp import ACTIVATIONS, sequential

INFO = DataInfo("", "d", "x", (3, 2, 2), ("a", "b", "c"), 10, 10, 255.0)


def build(activation, *, hidden_sizes=(7, 5), dropout=0.0, mean=(), std=(), info=INFO):
    torch.manual_seed(0)
    module = sequential(12, hidden_sizes, 3, activation=activation, dropout=dropout).eval()
    weights = {name: value.numpy() for name, value in module.state_dict().items()}
    return module, Network(info, mean, std, hidden_sizes, activation, dropout, weights)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_every_activation_agrees_with_torch(activation, dropout):
    module, network = build(activation, dropout=dropout, mean=(0.1, 0.2, 0.3), std=(0.5,))
    pixels = np.random.default_rng(0).integers(0, 256, (1500, 12), dtype=np.uint8)  # more than are computed at a time
    x = torch.from_numpy(pixels).float().div(255).view(-1, 3, 4)
    x = (x - torch.tensor([0.1, 0.2, 0.3])[:, None]) / 0.5
    with torch.no_grad():
        expected = module(x.flatten(1)).softmax(-1).numpy()
    found = network.probabilities(pixels)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_no_activation_is_missing():
    assert OWN.keys() == ACTIVATIONS.keys()


def test_softmax_regression_has_one_layer():
    module, network = build("relu", hidden_sizes=())
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12), dtype=np.uint8)
    with torch.no_grad():
        expected = module(torch.from_numpy(pixels).float() / 255).softmax(-1).numpy()
    np.testing.assert_allclose(network.probabilities(pixels), expected, atol=1e-6)


def test_confusion_counts_and_orders_mistakes():
    _, network = build("relu")
    pixels = np.random.default_rng(1).integers(0, 256, (60, 12), dtype=np.uint8)
    probabilities = network.probabilities(pixels)
    said = probabilities.argmax(1)
    labels = np.random.default_rng(2).integers(0, 3, 60)
    matrix, mistakes = confusion(network, pixels, labels, most=5)
    for i in range(3):
        for j in range(3):
            assert matrix[i, j] == sum((labels == i) & (said == j))
    assert len(mistakes) == 5
    confidences = [one.confidence for one in mistakes]
    assert confidences == sorted(confidences, reverse=True)
    assert confidences[0] == pytest.approx(probabilities[said != labels].max())
    assert all(one.said == said[one.index] != one.label == labels[one.index] for one in mistakes)
