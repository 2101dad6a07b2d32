"""Run a trained MLP in plain numpy: it classifies images without the 2 s that importing torch takes.

It serves only to look at results, in `stagetree predict` and on the page that ends each sweep. The recorded metrics of
a run are computed by `epochs.evaluate`; the two agree to rounding.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stagetree.data import cache
from stagetree.data.cache import DataInfo
from stagetree.models.layers import ACTIVATIONS, list_layers
from stagetree.storage import checkpoints

ROWS = 1000
"""Number of images computed at a time."""


@dataclass(frozen=True)
class Network:
    """A finished run's weights and the scaling of its inputs."""

    info: DataInfo
    """The description of its training data."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    model: Mapping[str, Any]
    """The model group's settings."""
    weights: Mapping[str, np.ndarray]
    """Named and laid out as in `mlp.sequential`, float32."""

    @classmethod
    def load(cls, output_dir: Path, uid: str) -> "Network":
        """Read the final state of a run.

        Raises:
            StateError: the state is missing or damaged.
            InputError: the record of its data is missing.
        """
        record, weights = checkpoints.load_weights(checkpoints.folder_of(output_dir), uid)
        trunk = record.trunk
        info = cache.find(trunk.data, output_dir)
        channels = max(len(trunk.mean), len(trunk.std))
        if channels > 1 and channels != info.image_shape[0]:  # since then its content was prepared in another shape
            info = replace(info, image_shape=(channels, 1, info.in_features // channels))
        return cls(info, trunk.mean, trunk.std, trunk.model, weights)

    @property
    def layers(self) -> list[tuple[Any, ...]]:
        """The layers, as `list_layers` lists them."""
        return list_layers(self.info.in_features, len(self.info.classes), **self.model)

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Compute the softmax of the logits.

        Args:
            pixels: `(n, in_features)`, channel by channel, as in the data.

        Returns:
            float32 `(n, n_classes)`.
        """
        return np.concatenate([_softmax(self._logits(part)) for part in _parts(pixels)])

    def _logits(self, pixels: np.ndarray) -> np.ndarray:
        x = self.inputs(pixels)
        for place, (name, *_) in enumerate(self.layers):
            if name == "Linear":
                x = x @ self.weights[f"{place}.weight"].T + self.weights[f"{place}.bias"]
            elif name != "Dropout":
                x = ACTIVATIONS[self.model["activation"]].in_numpy(x)
        return x

    def inputs(self, pixels: np.ndarray) -> np.ndarray:
        """Scale and normalise pixels `(n, in_features)` to float32 as in training."""
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


# ---------------------------------------------------------------- misclassified images


@dataclass(frozen=True)
class Misclassified:
    """A test image that a run classifies wrongly."""

    index: int
    """Its place in the test set."""
    label: int
    predicted: int
    confidence: float
    """Probability of the predicted class."""


def confusion(
    network: Network, pixels: np.ndarray, labels: np.ndarray, most: int
) -> tuple[np.ndarray, list[Misclassified]]:
    """Count which classes a run predicts for labelled images.

    Args:
        network: of the run.
        pixels: `(n, in_features)`.
        labels: int64 `(n,)`.
        most: misclassified images to return.

    Returns:
        Confusion matrix, int64 `(n_classes, n_classes)`, with a row for each true class; and the misclassified images
        of which the run was most confident.
    """
    probabilities = network.probabilities(pixels)
    predicted = probabilities.argmax(1)
    n_classes = len(network.info.classes)
    matrix = np.bincount(labels * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)
    confidence = probabilities[np.arange(len(predicted)), predicted]
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    return matrix, [Misclassified(int(i), int(labels[i]), int(predicted[i]), float(confidence[i])) for i in worst]
