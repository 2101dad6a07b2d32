"""Loads the best run for MLflow: plain tensors and this file, no pickle, nothing of stagetree."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import nn


class Classifier:
    """Turns pixels into the probabilities of the classes."""

    def __init__(self, folder: Path):
        self.about = json.loads((folder / "model.json").read_text())
        layers = [getattr(nn, name)(*arguments) for name, *arguments in self.about["layers"]]
        self.model = nn.Sequential(*layers).eval()
        self.model.load_state_dict(load_file(folder / "weights.safetensors"))

    def predict(self, model_input, params=None) -> pd.DataFrame:
        """Compute a column of probabilities for each class.

        Args:
            model_input: pixels as the data set has them, `(n, features)` or `(n, channels, height, width)`.
            params: none are known.
        """
        about = self.about
        pixels = torch.as_tensor(np.asarray(model_input, dtype=np.float32)).reshape(-1, *about["image_shape"])
        mean, std = (torch.tensor(about[name]).reshape(-1, 1, 1) for name in ("mean", "std"))
        with torch.no_grad():
            logits = self.model(((pixels / about["scale"] - mean) / std).flatten(1))
        return pd.DataFrame(logits.softmax(-1).numpy(), columns=about["classes"])


def _load_pyfunc(folder: str) -> Classifier:
    return Classifier(Path(folder))
