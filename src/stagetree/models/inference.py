"""A trained MLP in plain numpy: classes of pictures, without the seconds that importing torch takes.

Only for looking at results. What is recorded of a run was computed by `epoch.evaluate`; the two agree to rounding.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stagetree.data import cache
from stagetree.data.cache import DataInfo
from stagetree.storage import checkpoints

ROWS = 1000
"""Pictures computed at a time."""


@dataclass(frozen=True)
class Network:
    """A finished run's weights, and what turns pixels into its inputs."""

    info: DataInfo
    """Of the data it was trained on."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    hidden_sizes: tuple[int, ...]
    activation: str
    dropout: float
    weights: Mapping[str, np.ndarray]
    """Named and laid out as in `model.sequential`, float32."""

    @classmethod
    def load(cls, output_dir: Path, uid: str) -> "Network":
        """Read the final state of a run.

        Raises:
            StateError: it is missing or damaged.
            InputError: what is known of its data is gone.
        """
        record, weights = checkpoints.load_weights(checkpoints.folder_of(output_dir), uid)
        trunk = record.trunk
        model, info = trunk.model, cache.find(trunk.data, output_dir)
        channels = max(len(trunk.mean), len(trunk.std))
        if channels > 1 and channels != info.image_shape[0]:  # since then its content was prepared in another shape
            info = replace(info, image_shape=(channels, 1, info.in_features // channels))
        return cls(
            info, trunk.mean, trunk.std, tuple(model["hidden_sizes"]), model["activation"],
            model["dropout"], weights,
        )  # fmt: skip

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Compute the softmax of the logits.

        Args:
            pixels: `(n, in_features)`, channel by channel, as the data has them.

        Returns:
            float32 `(n, n_classes)`.
        """
        return np.concatenate([_softmax(self._logits(part)) for part in _parts(pixels)])

    def _logits(self, pixels: np.ndarray) -> np.ndarray:
        x = self.inputs(pixels)
        names = sorted((name for name in self.weights if name.endswith("weight")), key=lambda name: int(name[:-7]))
        for name in names:
            x = x @ self.weights[name].T + self.weights[name.replace("weight", "bias")]
            if name != names[-1]:
                x = ACTIVATIONS[self.activation](x)
        return x

    def inputs(self, pixels: np.ndarray) -> np.ndarray:
        """Scale and normalise as in training, float32."""
        x = pixels.astype(np.float32) / np.float32(self.info.scale)
        by_channel = x.reshape(len(x), max(len(self.mean), len(self.std), 1), -1)
        if self.mean:
            by_channel -= np.array(self.mean, np.float32)[:, None]
        if self.std:
            by_channel /= np.array(self.std, np.float32)[:, None]
        return x


def _parts(pixels: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(pixels), ROWS):
        yield pixels[first : first + ROWS]


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return expit(x)


def _gelu(x: np.ndarray) -> np.ndarray:
    from scipy.special import ndtr

    return x * ndtr(x)


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, np.float32(0.01) * x),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "gelu": _gelu,
    "silu": lambda x: x * _sigmoid(x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
}
"""As torch.nn defines them, with its default parameters."""


# ---------------------------------------------------------------- misclassified images


@dataclass(frozen=True)
class Misclassified:
    """A test image that a run takes for something else."""

    index: int
    """In the test set."""
    label: int
    said: int
    confidence: float
    """Probability of the class it said."""


def confusion(
    network: Network, pixels: np.ndarray, labels: np.ndarray, most: int
) -> tuple[np.ndarray, list[Misclassified]]:
    """Count what a run makes of labelled images.

    Args:
        network: of the run.
        pixels: `(n, in_features)`.
        labels: int64 `(n,)`.
        most: misclassified images to return.

    Returns:
        Confusion matrix, int64 `(n_classes, n_classes)`, a row for each true class; and the misclassified images of
        which the run was surest.
    """
    probabilities = network.probabilities(pixels)
    said = probabilities.argmax(1)
    n_classes = len(network.info.classes)
    matrix = np.bincount(labels * n_classes + said, minlength=n_classes**2).reshape(n_classes, n_classes)
    confidence = probabilities[np.arange(len(said)), said]
    wrong = np.flatnonzero(said != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    return matrix, [Misclassified(int(i), int(labels[i]), int(said[i]), float(confidence[i])) for i in worst]
