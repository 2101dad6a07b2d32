"""Splits, epoch orders and normalised pixels: those of torch and torchvision, from seeds alone."""

from itertools import product

import numpy as np
import pytest
import torch

from stagetree.data import sampling
from stagetree.data.cache import DataInfo


@pytest.mark.parametrize(("n", "val_size"), [(50_000, 5000), (1437, 0.2), (1001, 0.25), (7, 0.5), (10, 1), (1000, 0.1)])
@pytest.mark.parametrize("seed", [0, 43])
def test_a_split_has_the_members_of_random_split(n, val_size, seed):
    from torch.utils.data import random_split

    lengths = [n - val_size, val_size] if isinstance(val_size, int) else [1 - val_size, val_size]
    expected = random_split(range(n), lengths, generator=torch.Generator().manual_seed(seed))
    train, val = sampling.split(n, val_size, seed)
    assert (train.tolist(), val.tolist()) == (expected[0].indices, expected[1].indices)


def test_without_validation_all_are_for_training_in_their_order():
    train, val = sampling.split(5, 0, seed=3)
    assert (train.tolist(), val.tolist()) == ([0, 1, 2, 3, 4], [])


def test_an_epochs_order_depends_on_seed_and_epoch_alone():
    indices = torch.arange(100, 200)

    def order(seed, epoch, shuffle=True):
        return sampling.epoch_order(indices, seed=seed, epoch=epoch, shuffle=shuffle).tolist()

    first = order(0, 0)
    torch.manual_seed(5)
    assert order(0, 0) == first
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert sorted(first) == indices.tolist()
    assert order(0, 0, shuffle=False) == indices.tolist()


def test_generators_of_other_purposes_are_other_generators():
    keys = list(product((0, 1), (0, 1, 10), ("order", "dropout")))
    draws = {torch.rand(1, generator=sampling.generator(*key)).item() for key in keys}
    assert len(draws) == len(keys) == 12


@pytest.mark.parametrize(
    ("mean", "std"), [((), ()), ((0.5,), (0.5,)), ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))]
)
def test_pixels_have_the_bits_of_totensor_and_normalize(mean, std):
    from torchvision.transforms import Normalize, ToTensor

    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    info = DataInfo("", "", "x", (3, 4, 5), ("a",), 1, 1, 255.0)
    expected = ToTensor()(image)
    if mean:
        expected = Normalize(mean * (3 // len(mean)), std * (3 // len(std)))(expected)
    pixels = torch.from_numpy(image.transpose(2, 0, 1).reshape(1, -1).copy())
    assert torch.equal(sampling.to_float(pixels, info, mean, std)[0], expected.flatten())


@pytest.mark.parametrize("mean", [(), (0.5,), (0.4, 0.5, 0.6)])
@pytest.mark.parametrize("std", [(), (0.5,), (0.2, 0.3, 0.4)])
def test_numbers_follow_from_the_settings_not_from_how_the_data_is_described(mean, std):
    """Two sources of one content, and so of one uid, may differ in their shape."""
    pixels = torch.arange(2 * 48, dtype=torch.uint8).view(2, 48)
    infos = [DataInfo("", "", "x", shape, ("a",), 1, 1, 255.0) for shape in ((3, 4, 4), (1, 1, 48), (1, 12, 4))]
    first, *others = [sampling.to_float(pixels, info, mean, std) for info in infos]
    assert all(torch.equal(first, other) for other in others)


def test_the_users_own_floats_are_left_as_they_are():
    rows = torch.randn(3, 7)
    info = DataInfo("", "", "x", (1, 1, 7), ("a",), 1, 1, 1.0)
    assert torch.equal(sampling.to_float(rows, info, (), ()), rows)
