"""Export a finished run as plain files, none of them a pickle, for programs without stagetree."""

import json
from pathlib import Path
from typing import Any

import yaml
from safetensors.numpy import save_file

from stagetree.errors import InputError
from stagetree.models.inference import Network


def export(network: Network, folder: Path, about: dict[str, Any]) -> None:
    """Write a trained network.

    `weights.safetensors` has the names and shapes of the `torch.nn.Sequential` that `model.json` lists and `example.py`
    builds; `model.json` also has the classes and the scaling of pixels; `config.yaml` says how it was trained.

    Args:
        network: of a finished run.
        folder: to make.
        about: content of `config.yaml`.

    Raises:
        InputError: the folder is not empty.
        OSError: the folder cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"export: {folder} holds something already (give a new or an empty folder)")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(network.weights), folder / "weights.safetensors")
    described = describe_model(network)
    (folder / "model.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(about, sort_keys=False, allow_unicode=True), encoding="utf-8")
    (folder / "example.py").write_text(_example(described), encoding="utf-8")


def describe_model(network: Network) -> dict[str, Any]:
    """Describe all that a program needs beside the weights: layers, classes and the scaling of pixels."""
    channels = network.info.image_shape[0]
    return {
        "layers": network.layers,
        "classes": list(network.info.classes),
        "image_shape": list(network.info.image_shape),
        "scale": network.info.scale,
        "mean": list(network.mean or [0.0] * channels),
        "std": list(network.std or [1.0] * channels),
    }


def _example(model: dict[str, Any]) -> str:
    """Write a short program that loads the model and uses it."""
    layers = ", ".join(f"nn.{name}({', '.join(map(repr, arguments))})" for name, *arguments in model["layers"])
    shape = ", ".join(map(str, model["image_shape"]))
    scale, classes = model["scale"], json.dumps(model["classes"])
    return f'''\
"""Loads the model with torch and safetensors alone. Run it in this folder: python example.py"""

import torch
from safetensors.torch import load_file
from torch import nn

model = nn.Sequential({layers}).eval()
model.load_state_dict(load_file("weights.safetensors"))
pixels = torch.zeros(1, {shape})  # images: n, channels, height, width, 0 to {scale:g}
mean, std = torch.tensor({model["mean"]}).view(-1, 1, 1), torch.tensor({model["std"]}).view(-1, 1, 1)
print(model(((pixels / {scale} - mean) / std).flatten(1)).softmax(-1).detach())  # classes: {classes}
'''
