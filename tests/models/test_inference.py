"""The numpy network says what the torch module says."""

from typing import get_args

import numpy as np
import pytest
import torch

from stagetree.config import schema
from stagetree.data.cache import DataInfo
from stagetree.models.inference import Network, confusion
from stagetree.models.layers import ACTIVATIONS
from stagetree.models.mlp import sequential

INFO = DataInfo("", "d", "x", (3, 2, 2), ("a", "b", "c"), 10, 10, 255.0)


def build(activation, *, hidden_sizes=(7, 5), dropout=0.0, mean=(), std=(), info=INFO):
    torch.manual_seed(0)
    model = {"hidden_sizes": hidden_sizes, "activation": activation, "dropout": dropout}
    module = sequential(12, 3, **model).eval()
    weights = {name: value.numpy() for name, value in module.state_dict().items()}
    return module, Network(info, mean, std, model, weights)


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


def test_what_may_be_configured_is_what_there_is():
    assert set(get_args(schema.Activation)) == ACTIVATIONS.keys()


def test_softmax_regression_has_one_layer():
    module, network = build("relu", hidden_sizes=())
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12), dtype=np.uint8)
    with torch.no_grad():
        expected = module(torch.from_numpy(pixels).float() / 255).softmax(-1).numpy()
    np.testing.assert_allclose(network.probabilities(pixels), expected, atol=1e-6)


def test_confusion_counts_and_orders_misclassified_images():
    _, network = build("relu")
    pixels = np.random.default_rng(1).integers(0, 256, (60, 12), dtype=np.uint8)
    probabilities = network.probabilities(pixels)
    predicted = probabilities.argmax(1)
    labels = np.random.default_rng(2).integers(0, 3, 60)
    matrix, misclassified = confusion(network, pixels, labels, most=5)
    for i in range(3):
        for j in range(3):
            assert matrix[i, j] == sum((labels == i) & (predicted == j))
    assert len(misclassified) == 5
    confidences = [one.confidence for one in misclassified]
    assert confidences == sorted(confidences, reverse=True)
    assert confidences[0] == pytest.approx(probabilities[predicted != labels].max())
    assert all(one.predicted == predicted[one.index] != one.label == labels[one.index] for one in misclassified)
