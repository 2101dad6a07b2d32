"""What the peers have in common: data sets and the model, as PyTorch's and torchvision's tutorials write them."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset


def datasets(name: str, root: str) -> tuple[Dataset, Dataset]:
    """Training and test set; pictures are float32 in 0 to 1."""
    if name in ("mnist", "fashion_mnist"):
        from torchvision.datasets import MNIST, FashionMNIST
        from torchvision.transforms import ToTensor

        cls = {"mnist": MNIST, "fashion_mnist": FashionMNIST}[name]
        return tuple(cls(root, train=train, download=True, transform=ToTensor()) for train in (True, False))
    if name == "digits":
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(x))  # the split that stagetree makes
        x, y = torch.as_tensor(x[order]).float() / 16, torch.as_tensor(y[order])
        test_x, test_y, train_x, train_y = x[:360], y[:360], x[360:], y[360:]
    else:
        with np.load(Path(root) / name) as arrays:
            train_x, test_x = [torch.from_numpy(arrays[f"{part}_x"]).float() / 255 for part in ("train", "test")]
            train_y, test_y = [torch.from_numpy(arrays[f"{part}_y"]) for part in ("train", "test")]
    return TensorDataset(train_x, train_y), TensorDataset(test_x, test_y)


def mlp(example: torch.Tensor, hidden_sizes: list[int], n_classes: int = 10) -> nn.Sequential:
    """A multilayer perceptron for pictures like this one."""
    sizes = [example.numel(), *hidden_sizes]
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], n_classes))
