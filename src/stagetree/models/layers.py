"""List the layers of an MLP and its activations, without torch.

The plain module, the exported files and the forward pass in numpy are all made from `list_layers`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Activation:
    """An activation, as torch.nn defines it with its default parameters."""

    layer: str
    """Its class in torch.nn."""
    backward: Callable[[Any, Any, Any, Any], Any]
    """Turns `torch.ops.aten`, the gradient of the output, the input and the output into the gradient of the input."""
    in_numpy: Callable[[np.ndarray], np.ndarray]
    """Keeps shape and dtype."""


def _sigmoid(x: np.ndarray) -> np.ndarray:
    from scipy.special import expit  # late: the usual activations do without scipy

    return expit(x)


def _gelu(x: np.ndarray) -> np.ndarray:
    from scipy.special import ndtr  # numpy has no error function

    return x * ndtr(x)


ACTIVATIONS = {
    "relu": Activation(
        "ReLU", lambda aten, grad, z, out: aten.threshold_backward(grad, out, 0), lambda x: np.maximum(x, 0)
    ),
    "leaky_relu": Activation(
        "LeakyReLU",
        lambda aten, grad, z, out: aten.leaky_relu_backward(grad, z, 0.01, False),
        lambda x: np.where(x > 0, x, np.float32(0.01) * x),
    ),
    "tanh": Activation("Tanh", lambda aten, grad, z, out: aten.tanh_backward(grad, out), np.tanh),
    "sigmoid": Activation("Sigmoid", lambda aten, grad, z, out: aten.sigmoid_backward(grad, out), _sigmoid),
    "gelu": Activation("GELU", lambda aten, grad, z, out: aten.gelu_backward(grad, z), _gelu),
    "silu": Activation("SiLU", lambda aten, grad, z, out: aten.silu_backward(grad, z), lambda x: x * _sigmoid(x)),
    "elu": Activation(
        "ELU",
        lambda aten, grad, z, out: aten.elu_backward(grad, 1.0, 1.0, 1.0, False, z),
        lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    ),
}
"""The activations by their names in a configuration, which are also those in torch.nn.functional."""


def list_layers(
    in_features: int, n_classes: int, *, hidden_sizes: Sequence[int], activation: str, dropout: float = 0.0
) -> list[tuple[Any, ...]]:
    """List an MLP's layers in order: `("Linear", n_in, n_out)`, `("ReLU",)`, `("Dropout", p)` and so on.

    The place of a layer in the list names its weights: `0.weight` of shape `(n_out, n_in)`, `0.bias` of `(n_out,)`.

    Args:
        in_features: of an image, all its channels together.
        n_classes: outputs.
        hidden_sizes: units of each hidden layer; empty: softmax regression.
        activation: a key of `ACTIVATIONS`.
        dropout: probability after each hidden layer; 0: no such layers.
    """
    layers: list[tuple[Any, ...]] = []
    sizes = [in_features, *hidden_sizes]
    for n_in, n_out in pairwise(sizes):
        layers += [("Linear", n_in, n_out), (ACTIVATIONS[activation].layer,)]
        layers += [("Dropout", dropout)] if dropout else []
    return [*layers, ("Linear", sizes[-1], n_classes)]
