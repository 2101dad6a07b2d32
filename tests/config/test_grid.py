"""The grid: composed as Hydra itself would, checked as a whole."""

import time
from pathlib import Path

import hydra
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf, flag_override

from stagetree.config import grid as subject
from stagetree.config.grid import compose_grid
from stagetree.config.validation import check
from stagetree.errors import InputError
from stagetree.tree.notation import listed_stages

CONF = Path(__file__).parents[2] / "conf"
EXTRA = {
    "dataset/tiny.yaml": "name: digits\nroot: data\n",
    "dataset/incomplete.yaml": "name: npz\nroot: ???\nfile: ???\n",
    "experiment/adam_short.yaml": (
        "# @package _global_\ndefaults:\n  - override /optimizer: adam\n\nschedule:\n  stages: [[2, 1e-3]]\n"
    ),
    "experiment/named.yaml": (
        "# @package _global_\ntracking:\n  experiment: ${hydra:runtime.choices.model} ${seed} ${model.dropout}\n"
    ),
}


WITHOUT_VALUE = ["~optimizer.dampening"] if hydra.__version__.startswith("1.3.") else []
"""Hydra 1.4.0rc3's own sweeper takes `~key` for `~key=null`, and refuses."""


@pytest.fixture
def loader(tmp_path):
    for name, text in EXTRA.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    base = {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}  # 1.4 warns when it is given
    with initialize_config_dir(str(CONF), **base):
        yield GlobalHydra.instance().config_loader()


@pytest.fixture
def master(loader, tmp_path):
    overrides = [f"hydra.searchpath=[file://{tmp_path}]", "dataset=tiny"]
    return compose("config", overrides=overrides, return_hydra_config=True)


@pytest.fixture
def grid(loader, master):
    return lambda *arguments: compose_grid(loader, master, ["dataset=tiny", *arguments])


def plain(loader, master, words):
    """The same job by Hydra alone: its configuration, or the text of its error."""
    try:
        cfg = loader.load_sweep_config(master, list(words))
    except CompactHydraException as error:
        return f"{error}\n{error.__cause__}" if error.__cause__ else str(error)
    HydraConfig.instance().set_config(cfg)
    with flag_override(cfg, ["struct", "readonly"], [False, False]):
        del cfg["hydra"]
    return check(OmegaConf.to_container(cfg, resolve=True))


@pytest.mark.parametrize(
    "arguments",
    [
        ["model=mlp,softmax,mlp_300", "optimizer=sgd,adam", "seed=range(0,3)"],
        ["model.hidden_sizes=[512],[1024,512]", "optimizer.momentum=choice(0,0.9)", "schedule=constant,step"],
        ["+experiment=adam_short,named", "seed=1,2", "model=softmax,mlp_300"],
        ["++dataset.val_size=10,0.5", "+dataset.mean=[0.5],[]", *WITHOUT_VALUE, "~report.top=20"],
        ["model.dropout=0.25", "trainer.batch_size=${report.top},64", "tracking.experiment='a, b',\"c=d\",${seed}x",
         "schedule.reset_optimizer=true,false"],
        ["optimizer={momentum:0.9},{momentum:0.5,nesterov:true}", "model=glob(mlp_*,exclude=mlp_64*)"],
        ["schedule.stages=[[20,1e-1],[10,1e-3]],[{epochs:5,lr:.1}],'[(3,1e-1)]'"],
        [],
    ],
)  # fmt: skip
def test_the_grid_holds_what_hydra_alone_would_compose(loader, master, grid, arguments):
    jobs = grid(*arguments)
    assert len({job.overrides for job in jobs}) == len(jobs)
    for job in jobs:
        assert job.config == plain(loader, master, job.overrides)


@pytest.mark.parametrize(
    "argument",
    [
        "model=nope",
        "modl=mlp",
        "optimizer.lrr=1",
        "+optimizer.momentum=1",
        "~optimizer.lr",
        "~optimizer.momentum=3",
        "model@foo=mlp",
        "nope@foo=1",
        "+experiment=nope",
        "seed.x=1",
        "++model=mlp",
    ],
)
def test_an_error_reads_as_hydra_alone_would_put_it(loader, master, grid, argument):
    expected = plain(loader, master, ["dataset=tiny", argument])
    assert isinstance(expected, str)
    with pytest.raises(InputError) as caught:
        grid(argument)
    assert str(caught.value) == expected


def test_groups_are_composed_once_for_each_choice(loader, master, grid, monkeypatch):
    composed = []
    load = type(loader).load_sweep_config
    monkeypatch.setattr(
        type(loader), "load_sweep_config", lambda self, cfg, words: composed.append(words) or load(self, cfg, words)
    )
    assert len(grid("model=mlp,softmax", "seed=range(0,10)", "schedule.stages=[[1,.1]],[[2,.1]]")) == 40
    assert composed == [["dataset=tiny", "model=mlp"], ["dataset=tiny", "model=softmax"]]


def test_without_hydras_private_method_each_job_is_composed_whole(loader, master, grid, monkeypatch):
    arguments = ["model=mlp,softmax", "seed=1,2"]
    fast = grid(*arguments)

    class PublicLoader:
        load_sweep_config = staticmethod(loader.load_sweep_config)
        get_group_options = staticmethod(loader.get_group_options)

    assert compose_grid(PublicLoader(), master, ["dataset=tiny", *arguments]) == fast


@pytest.mark.parametrize("group", ["model", "optimizer", "schedule", "loss", "trainer", "execution", "tracking"])
def test_each_option_writes_out_every_setting_so_that_each_can_be_overridden(grid, group):
    jobs = grid(f"{group}=glob(*)", *(["tracking.uri=http://x"] if group == "tracking" else []))
    assert len(jobs) == len(list((CONF / group).glob("*.yaml")))
    for job in jobs:
        settings = getattr(job.config, group)
        assert settings.model_fields_set == set(type(settings).model_fields), job.overrides
        if group in ("optimizer", "loss", "trainer", "execution"):  # and they are the schema's own defaults
            assert settings == type(settings)(**settings.model_dump(include={"name"}))


@pytest.mark.slow
def test_a_thousand_jobs_are_composed_in_seconds(grid):
    started = time.process_time()
    assert len(grid("model=mlp,softmax", "seed=range(0,250)", "optimizer=sgd,adam")) == 1000
    assert time.process_time() - started < 10  # 2.2 s on a quiet core; Hydra alone takes 60


def test_params_of_the_sweeper_join_the_grid_and_the_command_line_wins(loader, tmp_path):
    params = "{seed:'1,2',dataset:tiny,schedule.stages:'[(1,.1)],[(2,.1)]'}"
    overrides = [f"hydra.searchpath=[file://{tmp_path}]", "dataset=tiny", f"+hydra.sweeper.params={params}"]
    master = compose("config", overrides=overrides, return_hydra_config=True)
    jobs = compose_grid(loader, master, ["seed=7", "model=softmax,mlp"])
    assert [job.config.seed for job in jobs] == [7] * 4
    assert [job.config.schedule.stages[0].epochs for job in jobs] == [1, 1, 2, 2]


def test_all_errors_of_all_jobs_are_told_at_once_with_the_choices_that_make_them(grid):
    with pytest.raises(InputError) as caught:
        grid("optimizer=sgd,adam", "seed=1,2,-3", "+optimizer.alpha=1", "trainer.batch_size=0")
    lines = str(caught.value).splitlines()
    assert [line for line in lines if line.startswith("seed")] == ["seed: must be at least 0, got -3 (in seed=-3)"]
    assert [line for line in lines if line.startswith("trainer")] == ["trainer.batch_size: must be at least 1, got 0"]
    wrong = [line for line in lines if line.startswith("optimizer.alpha: there is no such setting")]
    assert [line.rpartition("(")[2] for line in wrong] == ["in optimizer=sgd)", "in optimizer=adam)"]
    assert len(lines) == 4


def test_a_long_list_of_errors_is_cut(grid):
    with pytest.raises(InputError) as caught:
        grid("seed=range(-25,0)")
    lines = str(caught.value).splitlines()
    assert len(lines) == subject.ERRORS_SHOWN + 1
    assert lines[-1] == "... and 5 more errors"


def test_what_is_still_missing_is_named(grid):
    with pytest.raises(InputError) as caught:
        grid("dataset=incomplete")
    assert str(caught.value).splitlines() == [
        "dataset.file: is not set (give it as dataset.file=...)",
        "dataset.root: is not set (give it as dataset.root=...)",
    ]


def test_an_interpolation_that_leads_nowhere_is_named(grid):
    with pytest.raises(InputError, match=r"^seed: Interpolation key 'nope' not found$"):
        grid("seed=${nope}")


def test_an_environment_variable_that_is_not_set_is_named(grid, monkeypatch):
    monkeypatch.delenv("NONESUCH", raising=False)
    with pytest.raises(InputError, match=r"dataset.root: .*NONESUCH"):
        grid("dataset.root=${oc.env:NONESUCH}", "seed=1,2")


def test_jobs_of_plain_values_are_put_together_without_hydra(grid, loader, monkeypatch):
    """The quick way is taken where it can be: a thousand jobs ask Hydra once for each value."""
    calls = []
    apply = loader._apply_overrides_to_config
    monkeypatch.setattr(loader, "_apply_overrides_to_config", lambda *args: (calls.append(args), apply(*args)))
    jobs = grid("seed=range(0,100)", "model.dropout=0,0.1,0.2,0.3,0.4", "trainer.batch_size=16,32")
    assert len(jobs) == 1000
    assert len(calls) < 200
    assert {(job.config.seed, job.config.model.dropout, job.config.trainer.batch_size) for job in jobs} == {
        (seed, dropout, size) for seed in range(100) for dropout in (0, 0.1, 0.2, 0.3, 0.4) for size in (16, 32)
    }


@pytest.mark.parametrize("argument", ["seed=interval(1,2)", "model=glob(zz*)"])
def test_a_sweep_without_values_is_refused(grid, argument):
    with pytest.raises(InputError, match=r"a grid cannot sweep an interval|the grid is empty"):
        grid(argument)


def test_hydras_own_state_is_left_as_it_was(grid, master):
    HydraConfig.instance().set_config(master)
    before = HydraConfig.instance().cfg
    grid("model=softmax,mlp")
    assert HydraConfig.instance().cfg is before


@pytest.mark.parametrize(
    ("typed", "seen"),
    [
        ("[(3,1e-1)]", "[[3,1e-1]]"),
        ("[(20,1e-1),(10,1e-3)],[(5,1e-1)]", "[[20,1e-1],[10,1e-3]],[[5,1e-1]]"),
        ("[(20, 1e-1), (10, 1e-3)]", "[[20, 1e-1], [10, 1e-3]]"),
        ("((20,1e-1),)", "[[20,1e-1]]"),
        ("(20,1e-1)", "[20,1e-1]"),
        ("choice([(1,.1)],[(2,.1)])", "choice([[1,.1]],[[2,.1]])"),
        ("choice ('[(1,.1)]', \"[(2,.1)]\")", "choice ('[(1,.1)]', \"[(2,.1)]\")"),
        ("'[(20,1e-1)]',[(5,1e-1)]", "'[(20,1e-1)]',[[5,1e-1]]"),
        (r"'it\'s [(1,2)]'", r"'it\'s [(1,2)]'"),
        ("[{epochs:20,lr:1e-1}]", "[{epochs:20,lr:1e-1}]"),
        ("[[20,1e-1]]", "[[20,1e-1]]"),
        ("[(1,2)", "[[1,2]"),
        ("1)", "1)"),
    ],
)
def test_tuples_of_stages_reach_hydra_as_lists(typed, seen):
    assert listed_stages(f"schedule.stages={typed}") == f"schedule.stages={seen}"


@pytest.mark.parametrize("argument", ["tracking.experiment=(a,b)", "seed=(1,2)", "my.schedule.stages=[(1,2)]"])
def test_other_overrides_keep_their_parentheses(argument):
    assert listed_stages(argument) == argument
