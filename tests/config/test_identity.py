"""Which configurations are one run, which may train side by side, and which differ in their seed alone.

`tests/invariants` tells the settings that decide the numbers from those that do not.
"""

import copy
from typing import get_args

import pytest

from stagetree.config import identity, schema

OPTIMIZERS = get_args(get_args(schema.AnyOptimizer)[0])


def run(config, *, digest="00", device="cpu"):
    return identity.to_run(config, digest=digest, in_features=16, n_classes=3, device=device)


def test_data_and_device_are_part_of_a_run(bench):
    config = bench.config()
    assert len({run(config).uid, run(config, digest="01").uid, run(config, device="cuda").uid}) == 3


def test_the_seed_of_a_validation_set_decides_if_there_is_one(bench):
    for val_size, count in ((0, 1), (40, 2)):
        made = {bench.run(dataset__val_size=val_size, dataset__val_seed=seed).uid for seed in (0, 1)}
        assert len(made) == count


def test_the_number_of_threads_decides_on_the_cpu_alone(bench):
    configs = [bench.config(trainer__threads=threads) for threads in (1, 2)]
    for device, count in (("cpu", 2), ("cuda", 1)):
        assert len({run(config, device=device).uid for config in configs}) == count


def test_equal_configurations_written_otherwise_are_one_run(bench):
    first = bench.run(schedule={"stages": "[(2,1e-1)]"}, optimizer={"name": "sgd", "weight_decay": 0})
    assert first == bench.run(schedule={"stages": [{"epochs": 2, "lr": 0.1}]}, optimizer={"name": "sgd"})


def with_signed_zeros(values, path=()):
    """Yield each number of a configuration that is 0.0, as a path with a zero for it that has a sign."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from with_signed_zeros(value, (*path, name))
        elif value == 0 and isinstance(value, float):
            yield (*path, name), -0.0
        elif isinstance(value, tuple) and 0.0 in value and isinstance(value[0], float):
            yield (*path, name), [-0.0 if part == 0 else part for part in value]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_equal_numbers_are_one_run_whatever_the_sign_of_zero(bench, optimizer):
    """Of each number in the schema."""
    never_zero = {"name", "eps", "nesterov", "amsgrad", "centered", "decoupled_weight_decay"}
    (name,) = get_args(optimizer.model_fields["name"].annotation)
    zeros = dict.fromkeys(optimizer.model_fields.keys() - never_zero, 0.0)
    if "betas" in zeros:
        zeros["betas"] = [0.0, 0.0]
    loss = {"name": "cross_entropy", "class_weights": [0.0, 1.0, 1.0]}
    config = bench.config(optimizer={"name": name, **zeros}, dataset__mean=[0.0], loss=loss)
    plain = config.model_dump()
    found = list(with_signed_zeros(plain))
    assert len(found) >= 5
    for path, value in found:
        signed = copy.deepcopy(plain)
        group = signed
        for part in path[:-1]:
            group = group[part]
        group[path[-1]] = value
        again = bench.config(**signed)
        assert again == config, path
        assert run(again).uid == run(config).uid, path


MOMENTUM = {"name": "sgd", "momentum": 0.9}


@pytest.mark.parametrize(
    ("change", "is_one"),
    [
        ({"seed": 1}, True),
        ({"schedule__stages": [[5, 0.3]]}, True),
        ({"optimizer": {"name": "sgd", "momentum": 0.5, "weight_decay": 0.1}}, True),
        ({"optimizer": {"name": "sgd"}}, False),  # plain SGD is part of the backward pass
        ({"optimizer": {"name": "adam"}}, False),
        ({"model__hidden_sizes": [9]}, False),
        ({"model__dropout": 0.1}, False),
        ({"trainer__batch_size": 17}, False),
        ({"loss": {"name": "mse"}}, False),
        ({"dataset__val_size": 41}, False),
    ],
)
def test_seeds_schedules_and_settings_of_an_optimizer_may_differ_between_the_members_of_a_pack(bench, change, is_one):
    first, second = bench.run(optimizer=MOMENTUM), bench.run(**{"optimizer": MOMENTUM, **change})
    assert first.uid != second.uid
    assert (first.trunk.pack_key == second.trunk.pack_key) == is_one


def test_a_trunk_is_identified_without_its_seed(bench):
    first, seed, other = (bench.run(**change) for change in ({}, {"seed": 1}, {"model__dropout": 0.1}))
    assert first.trunk != seed.trunk
    digests = [identity.trunk_digest(one.trunk) for one in (first, seed, other)]
    assert digests[0] == digests[1] != digests[2]
    assert [len(digest) for digest in digests] == [16] * 3
