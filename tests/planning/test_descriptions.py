"""Each setting that decides the numbers is recorded, named and told apart: derived from the schema."""

import dataclasses
import gzip
import json

import pytest
from every_setting import NO_EFFECT, another, base, kinds, leaves, recorded

from stagetree.config import identity, schema, validation
from stagetree.planning import descriptions
from stagetree.report import ranking
from stagetree.tree.runs import Trunk


@pytest.mark.parametrize(("group", "kind", "name"), list(leaves()))
def test_a_setting_that_changes_the_uid_changes_a_param_the_name_and_the_line_of_means(group, kind, name):
    values = base(group, kind, name)
    first = validation.check(values)
    now = getattr(getattr(first, group) if group else first, name)
    changed = json.loads(json.dumps(values))
    (changed[group] if group else changed)[name] = another(kind, name, now)
    second = validation.check(changed)
    configs = [one.model_copy(update={"seed": one.seed + 10 * seed}) for one in (first, second) for seed in (0, 1)]
    entries, frame = recorded(configs)
    if name in NO_EFFECT or (kind in (schema.Digits, schema.Torchvision) and name == "root"):
        assert len(entries) == 2
        return
    assert entries[0].params != entries[2].params
    assert len({entry.name for entry in entries}) == 4
    expected = [4] if name == "seed" else [2, 2]
    for known in (frame, frame.assign(trunk=None)):  # by the trunk, and by params alone as runs of before have them
        assert ranking.aggregate(known, "seed")["n"].tolist() == expected


def test_runs_of_before_without_the_newer_params_stay_apart_from_those_with_them():
    """Nobody knows how their pixels were normalised."""
    first = validation.check(base("dataset", schema.Digits, "mean"))
    _, frame = recorded([first, first.model_copy(update={"seed": 1})])
    frame.loc[0, ["trunk", "mean", "std", "device"]] = None
    assert ranking.aggregate(frame, "seed")["n"].tolist() == [1, 1]


def test_data_sets_of_one_name_are_told_apart_by_their_digests():
    values = base("dataset", schema.Npz, "root")
    moved = json.loads(json.dumps(values))
    moved["dataset"]["root"] = "elsewhere"
    entries, frame = recorded([validation.check(values), validation.check(moved)])
    digests = [entry.params["dataset_digest"][:8] for entry in entries]
    assert [entry.name for entry in entries] == [f"data {digest} 4 sgd lr 0.1" for digest in digests]
    assert sorted(frame["dataset"]) == sorted(f"small.npz {digest}" for digest in digests)


def test_data_sets_are_named_as_people_name_them():
    labels = {
        schema.Digits: "digits",
        schema.Torchvision: "mnist",
        schema.Emnist: "emnist-balanced",
        schema.Npz: "small.npz",
        schema.ImageFolder: "cats",
    }
    for kind in kinds("dataset"):
        assert validation.check(base("dataset", kind, "root")).dataset.label == labels[kind]


def test_what_is_kept_of_runs_is_read_again_and_so_is_what_earlier_versions_kept(tmp_path):
    entries, _ = recorded([validation.check(base("dataset", schema.Digits, "mean"))])
    path = tmp_path / "runs.jsonl.gz"
    descriptions.write_entries(path, entries)
    assert [entry.trunk_json for entry in descriptions.read_entries(path)] == [entries[0].trunk_json]
    older = dataclasses.asdict(entries[0])
    del older["trunk_json"]
    path.write_bytes(gzip.compress(json.dumps(older).encode()))
    assert [entry.trunk_json for entry in descriptions.read_entries(path)] == [""]
    assert identity.trunk_digest(Trunk.from_json(entries[0].trunk_json)) == entries[0].trunk
