"""Choose the images of each split, their order in each epoch, and normalise them."""

import hashlib
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from stagetree.data.cache import DataInfo, val_count


def split(n: int, val_size: int | float, seed: int) -> tuple[Tensor, Tensor]:
    """Choose training and validation members: int64 indices, as `torch.utils.data.random_split` does.

    Args:
        n: the number of images to divide.
        val_size: a count, or a fraction below 1; 0 leaves all for training, in the data's own order.
        seed: the seed of the generator.
    """
    if not val_size:
        return torch.arange(n), torch.empty(0, dtype=torch.int64)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    n_train = n - val_count(n, val_size)
    return order[:n_train], order[n_train:]


def generator(seed: int, epoch: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Make the generator of one epoch for one purpose, as a function of the arguments alone."""
    digest = hashlib.sha256(f"{purpose} {seed} {epoch}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def epoch_order(indices: Tensor, *, seed: int, epoch: int, shuffle: bool) -> Tensor:
    """Put the training members into the order of one epoch, from `(seed, epoch)` alone.

    Args:
        indices: int64 `(n,)`.
        seed: the seed of the run.
        epoch: counted from 0 over the whole schedule, not within a stage.
        shuffle: `False` keeps their order.
    """
    if not shuffle:
        return indices
    order = torch.randperm(len(indices), generator=generator(seed, epoch, "order"))
    return indices[order.to(indices.device)]


def to_float(pixels: Tensor, info: DataInfo, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale and normalise pixels, with the same bits as torchvision's `ToTensor` and `Normalize`.

    Args:
        pixels: `(..., in_features)`, channel by channel.
        info: the description of their data set.
        mean: one value for each channel, or one for all; empty: 0.
        std: one value for each channel, or one for all; empty: 1.

    Returns:
        A float32 tensor of the same shape, on the same device.
    """
    x = pixels.float()
    if info.scale != 1.0:
        x = x.div_(info.scale)
    if not mean and not std:
        return x
    # the settings decide the number of channels: sources of one content may differ in shape, but not in numbers
    by_channel = x.view(*x.shape[:-1], max(len(mean), len(std)), -1)
    if mean:
        by_channel.sub_(_column(tuple(mean), x.device))
    if std:
        by_channel.div_(_column(tuple(std), x.device))
    return x


@cache
def _column(values: tuple[float, ...], device: torch.device) -> Tensor:
    # cached, since a copy to the device in each step would wait for it
    return torch.tensor(values, device=device)[:, None]
