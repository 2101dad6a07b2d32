"""The best run as an MLflow model (models from code): plain tensors and this file, no pickle."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Classifier(PythonModel):
    """Turns pixels, `(n, features)` or `(n, channels, height, width)`, into the probabilities of the classes."""

    def load_context(self, context):
        from safetensors.torch import load_file
        from torch import nn

        folder = Path(context.artifacts["model"])
        self.about = json.loads((folder / "model.json").read_text())
        layers = [getattr(nn, name)(*arguments) for name, *arguments in self.about["layers"]]
        self.model = nn.Sequential(*layers).eval()
        self.model.load_state_dict(load_file(folder / "weights.safetensors"))

    def predict(self, context, model_input, params=None):
        """Return a DataFrame with a column of probabilities for each class."""
        import torch

        about = self.about
        pixels = torch.as_tensor(np.asarray(model_input, dtype=np.float32)).reshape(-1, *about["image_shape"])
        mean, std = (torch.tensor(about[name]).reshape(-1, 1, 1) for name in ("mean", "std"))
        with torch.no_grad():
            logits = self.model(((pixels / about["scale"] - mean) / std).flatten(1))
        return pd.DataFrame(logits.softmax(-1).numpy(), columns=about["classes"])


set_model(Classifier())
