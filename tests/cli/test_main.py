"""The command line, from what is typed to what Hydra, the sweeper plugin and the launchers are given."""

import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import stagetree
from stagetree import runner
from stagetree.cli import arguments, train, ui
from stagetree.cli.commands import COMMANDS
from stagetree.cli.main import main
from stagetree.errors import InputError
from stagetree.execution import engine_choice
from stagetree.execution.engine import Result

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Run `stagetree ...` in this process, in an empty folder, and return its exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    dataset = tmp_path / "own" / "dataset"
    dataset.mkdir(parents=True)
    (dataset / "tiny.yaml").write_text("name: digits\nroot: data\ntest_size: 360\n")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["stagetree", *words])
        try:
            return main() or 0
        except SystemExit as error:
            if isinstance(error.code, str):
                print(error.code, file=sys.stderr)  # as the interpreter does
                return 1
            return error.code
        finally:
            GlobalHydra.instance().clear()

    return run


@pytest.fixture
def sweeps(monkeypatch):
    """Stand in for `runner.run` and for training, which test_runner.py runs: what was asked for, and which units."""
    seen = SimpleNamespace(jobs=None, workers=None, command=None, units=[], fails=(), reported=None)

    def run(jobs, *, engine, command, progress):
        seen.jobs, seen.workers, seen.command = jobs, engine.workers, command
        sweep_dir = Path(jobs[0].config.output_dir).resolve() / "sweeps" / "s" / "it's (1), ok"
        ids = [f"{number:04d}" for number in range(len(jobs))]
        (sweep_dir / "units").mkdir(parents=True, exist_ok=True)
        for some in (ids[:-1], ids[-1:]):
            if some:
                engine.launch(sweep_dir, dict.fromkeys(some, ()))
        assert {folder for folder, _ in seen.units} == {sweep_dir}
        return SimpleNamespace(exit_code=3 if seen.fails else 0, objective=0.5, text="the end")

    def train_unit(sweep_dir, unit_id):
        seen.units.append((sweep_dir, unit_id))
        if unit_id in seen.fails:
            raise ValueError("this unit gives up")
        return Result(unit_id)

    def leaderboard(config, overrides):
        seen.reported = config.report

    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr(runner, "leaderboard", leaderboard)
    monkeypatch.setitem(sys.modules, "stagetree.execution.worker", SimpleNamespace(train_unit=train_unit))
    return seen


OWN = ("--config-dir", "own", "dataset=tiny")
HERE = (*OWN, "hydra/launcher=basic")


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("typed", "seen"),
    [
        (["train", "seed=1"], ["seed=1"]),
        (["seed=1"], ["seed=1"]),
        (["-m", "seed=1,2"], ["-m", "seed=1,2"]),
        (["~report"], ["~report"]),
        (["sweep", "a=1,2", "--config-dir", "X", "b=3"], ["-m", "--config-dir", "X", "a=1,2", "b=3"]),
        (["train", "seed=1", "-m", "model=a"], ["-m", "seed=1", "model=a"]),
        (["sweep", "-m", "a=1"], ["-m", "a=1"]),
        (["sweep", "a=1", "--cfg", "job"], ["--cfg", "job", "a=1"]),
        (["sweep", "--help"], ["--help"]),
        (["plan", "a=1"], ["-m", "a=1", "hydra.sweeper.mode=plan"]),
        (["plan", "--json", "a=1"], ["-m", "a=1", "hydra.sweeper.mode=plan", "hydra.sweeper.mode=plan_json"]),
        (["sweep", "--fresh", "a=1", "--quiet"], ["-m", "a=1", "execution.fresh=true", "quiet=true"]),
        (["train", "trainer.workers=2", "++trainer.fresh=true"], ["execution.workers=2", "++execution.fresh=true"]),
        (["train", "schedule.stages=[(3,1e-1)]"], ["schedule.stages=[[3,1e-1]]"]),
        (
            ["report", "--metric", "test_acc", "--top=20"],
            ["report.metric=test_acc", "report.top=20"],
        ),
        (["report", "--output", "my (best).csv"], ["report.output='my (best).csv'"]),
        (["report", "--group-by", "seed"], ["report.group_by=seed"]),
        (["data", "mnist", "dataset.val_size=10"], ["dataset.val_size=10", "dataset=mnist"]),
        (["data", "dataset=mnist"], ["dataset=mnist"]),
        (["data", "1e5"], ["dataset='1e5'"]),
        (["report", "--output", "2024", "--top", "3"], ["report.top=3", "report.output='2024'"]),
        (["export", "best", "my model", "dataset=mnist"], ["dataset=mnist"]),
    ],
)
def test_what_is_typed_reaches_hydra_with_flags_first(typed, seen):
    assert arguments.parse(typed).words == seen


@pytest.mark.parametrize(
    ("typed", "given"),
    [
        (["ui"], {}),
        (["ui", "--port", "0"], {"port": 0}),
        (["ui", "--port=65535"], {"port": 65535}),
        (["export"], {}),
        (["export", "1e45"], {"run": "1e45"}),
        (["export", "null", ".5"], {"run": "null", "folder": ".5"}),
        (["predict"], {}),
        (["predict", "5458"], {"run": "5458"}),
        (["predict", "best", "a.png", "b c.png", "seed=1"], {"run": "best", "images": ("a.png", "b c.png")}),
        (["migrate", "sqlite:///a.db"], {"uri": "sqlite:///a.db"}),
        (["verify", "--repair"], {"repair": True}),
        (["verify"], {}),
    ],
)
def test_arguments_of_a_command_reach_its_function(typed, given):
    call = arguments.parse(typed)
    assert (call.command, call.arguments) == (typed[0], given)
    assert all("=" in word for word in call.words)
    module, _, name = COMMANDS[call.command].function.partition(":")
    function = getattr(importlib.import_module(f"stagetree.cli.{module}"), name)
    inspect.signature(function).bind("job", **given)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["ui", "--port", "65536"], "stagetree ui: --port must be a whole number up to 65535, 0 for any port that is "
         "free, got '65536'"),
        (["ui", "--port"], "stagetree ui: argument --port: expected one argument"),
        (["report", "--top", "ten"], "stagetree report: --top must be a whole number, got 'ten'"),
        (["export", "a", "b", "c"], "stagetree export: takes 2 words, got a b c"),
        (["ui", "ui.port=1"], "ui.port: is no setting now but an argument of its command (stagetree ui --port 5000)"),
        (["predict", "predict.pictures=[a.png]"], "predict.pictures: is no setting now but an argument of its command "
         "(stagetree predict RUN image.png ...)"),
    ],
)  # fmt: skip
def test_what_a_command_does_not_take_is_said_in_a_sentence(typed, said):
    with pytest.raises(InputError) as caught:
        arguments.parse(typed)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    "text", ["5458", "1e5", "0x1F", "true", "null", "nan", ".5", "1_0", "a b", "it's\\", "a\\'b", "[x]"]
)
def test_words_that_are_typed_arrive_as_the_text_that_they_are(text):
    for typed in (["data", text], ["report", "--output", text]):
        (override,) = arguments.parse(typed).words
        value = OverridesParser.create().parse_override(override).value()
        assert (type(value), value) == (str, text)
    assert arguments.parse(["export", "best", text]).arguments == {"run": "best", "folder": text}


def test_a_reader_that_has_seen_enough_ends_a_command_without_a_word(tmp_path):
    """As `stagetree report | head`."""
    with subprocess.Popen(
        [sys.executable, "-m", "stagetree", "train", "--cfg", "job"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        cwd=tmp_path,
    ) as process:  # fmt: skip
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["train", "seed=1,2", "--cfg", "job"], "seed=1,2: got several values, expected one"),
        (["sweep", "seed=1,2", "--cfg", "job"], "seed=1,2: got several values, expected one"),
        (["sweep", "schedule.stages.0.lr=.1,.2"], "an override does not fit what it changes"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(command, sweeps, capsys, typed, said):
    assert command(typed[0], *HERE, *typed[1:]) == 1
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(
    ("stages", "key"),
    [("[{epochs:2,lr:.5},{epochs:1,lr:.5}]", "0.lr"), ("[(2,.5),(1,.5)]", "0.1"), ("[[2,.5]]", "0.1")],
)
def test_a_learning_rate_within_a_schedule_may_be_swept(command, sweeps, stages, key):
    assert command("sweep", *HERE, f"schedule.stages={stages}", f"schedule.stages.{key}=.1,.2") == 0
    assert [job.config.schedule.stages[0].lr for job in sweeps.jobs] == [0.1, 0.2]


def test_an_unknown_command_is_named_with_the_nearest(command, capsys):
    assert command("trian", "seed=1") == 1
    assert capsys.readouterr().err == (
        "stagetree: there is no command 'trian', expected one of train, sweep, plan, watch, report, ui, data, predict, "
        "export, migrate, verify; did you mean train?\n"
    )


def test_a_command_that_does_not_train_refuses_to_sweep(command, capsys):
    assert command("report", "-m", "report.top=1,2") == 1
    assert "takes no -m" in capsys.readouterr().err


def test_a_flag_that_does_not_exist_is_an_error_of_usage(command):
    assert command("train", "--nope") == 1


# ---------------------------------------------------------------- one run


def test_train_makes_one_job_and_runs_its_unit_here(command, sweeps, capsys):
    assert command("train", *OWN, "schedule.stages=[(3,1e-1)]", "seed=7") == 0
    (job,) = sweeps.jobs
    assert job.overrides == ("dataset=tiny", "schedule.stages=[[3,1e-1]]", "seed=7")
    assert (job.config.seed, job.config.schedule.stages[0].epochs) == (7, 3)
    assert sweeps.command == ["stagetree", "--config-dir", "own", *job.overrides]
    assert len(sweeps.units) == 1
    assert capsys.readouterr().out == "the end\n"


def test_a_run_that_fails_exits_with_3(command, sweeps):
    sweeps.fails = ("0000",)
    assert command("train", *OWN) == 3


def test_an_error_is_told_without_a_traceback(command, sweeps, capsys):
    assert command("train", *OWN, "optimizer.momentum=-1", "seed=-1") == 1
    assert capsys.readouterr().err.splitlines() == [
        "optimizer.momentum: must be at least 0.0, got -1",
        "seed: must be at least 0, got -1",
    ]
    assert sweeps.jobs is None


def test_a_group_option_that_does_not_exist_is_told_with_what_there_is(command, capsys):
    assert command("train", *OWN, "model=nope") == 1
    error = capsys.readouterr().err
    assert "Could not find 'model/nope'" in error
    assert "mlp_300" in error


def test_full_errors_keep_the_traceback(command, sweeps, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(InputError, match=r"seed: must be at least 0"):
        command("train", *OWN, "seed=-1")


def test_ctrl_c_exits_with_130(command, sweeps, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", interrupted)
    assert command("train", *OWN) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_another_sweeper_gets_the_objective_of_each_job(command, sweeps, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "train", lambda job, task=train.train: seen.append(task(job)) or seen[-1])
    assert command("train", "-m", *HERE, "hydra/sweeper=basic", "seed=1,2") == 0
    assert seen == [0.5, 0.5]


def test_another_sweeper_gets_an_exception_for_a_job_that_fails(command, sweeps, capsys):
    sweeps.fails = ("0000",)
    assert command("train", "-m", *HERE, "hydra/sweeper=basic", "seed=1,2") == 3
    assert capsys.readouterr().err.endswith("\nthe end\n")


# ---------------------------------------------------------------- sweeps


def test_sweep_gives_the_whole_grid_to_one_plan_and_its_units_to_the_launcher(command, sweeps, tmp_path):
    assert command("sweep", *HERE, "seed=1,2", "schedule.stages=[(3,1e-1)],[(2,1e-1),(1,1e-2)]") == 0
    assert [(job.config.seed, len(job.config.schedule.stages)) for job in sweeps.jobs] == [
        (1, 1),
        (1, 2),
        (2, 1),
        (2, 2),
    ]
    assert [unit for _, unit in sweeps.units] == ["0000", "0001", "0002", "0003"]
    assert sweeps.workers == 1


def test_a_sweep_leaves_no_folder_or_file_of_hydras(command, sweeps, tmp_path):
    assert command("sweep", *HERE, "seed=1,2") == 0
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if "own" not in path.parts}
    folder = "mlruns/sweeps/s/it's (1), ok"
    own = {f"{folder}/units/000{i}{mark}" for i in (0, 1) for mark in ("", ".taken", ".ended")}
    assert made == {"mlruns", "mlruns/claims.lock", "mlruns/sweeps", "mlruns/sweeps/s", folder, f"{folder}/units", *own}


def test_a_unit_that_fails_leaves_the_others_running(command, sweeps):
    sweeps.fails = ("0000",)
    assert command("sweep", *HERE, "seed=1,2,3") == 3
    assert len(sweeps.units) == 3


def test_an_error_anywhere_in_a_grid_trains_nothing(command, sweeps, capsys):
    assert command("sweep", *HERE, "seed=1,2,-3") == 1
    assert capsys.readouterr().err == "seed: must be at least 0, got -3 (in seed=-3)\n"
    assert sweeps.jobs is None


def test_settings_by_their_earlier_names_are_those_of_today(command, sweeps, tmp_path):
    (tmp_path / "own" / "experiment").mkdir()
    params = "# @package _global_\nhydra: {sweeper: {params: {trainer.pack_size: 1, seed: '1,2'}}}\n"
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(params)
    assert command("sweep", *HERE, "+experiment=mine", "trainer.workers=3", "++trainer.fresh=true") == 0
    assert len(sweeps.jobs) == 2
    execution = sweeps.jobs[0].config.execution
    assert (execution.workers, execution.fresh, execution.pack_size) == (3, True, 1)
    assert sweeps.workers == 3
    assert "execution.workers=3" in sweeps.jobs[0].command


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trainer: {workers: 2}", "trainer.workers: is called execution.workers now"),
        ("ui: {port: 1}", "ui: is no setting now but an argument of its command (stagetree ui --port 5000)"),
    ],
)
def test_a_file_with_settings_of_earlier_versions_is_told_what_to_write(command, sweeps, tmp_path, capsys, text, said):
    (tmp_path / "own" / "experiment").mkdir()
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
    assert command("train", *OWN, "+experiment=mine") == 1
    assert capsys.readouterr().err == f"{said}\n"


def test_settings_of_the_whole_sweep_must_not_vary_within_it(command, sweeps, capsys):
    varying = ["execution.workers=1,2", "report.top=3,4", "tracking.experiment=a,b", "quiet=true,false"]
    assert command("plan", *HERE, "seed=1,2", *varying) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"{word.split('=')[0]}: must be one for the whole sweep, got several values"
        for word in ("execution.workers", "tracking.experiment", "report.top", "quiet")
    ]


def test_a_mandatory_group_may_be_swept(command, sweeps, tmp_path):
    (tmp_path / "own" / "mine.yaml").write_text('defaults: [config, _self_, {override model: "???"}]\n')
    assert command("sweep", *HERE, "-cn", "mine", "model=mlp,softmax") == 0
    assert len(sweeps.units) == 2


def test_plan_prints_and_trains_nothing(command, sweeps, tmp_path, capsys):
    assert command("plan", *OWN, "seed=1,2", "execution.workers=7") == 0
    out, err = capsys.readouterr()
    assert "2 points, 0 duplicates, 0 finished, 2 to train" in out
    assert "s, by what this machine was measured to train" in out
    assert "measuring" in err
    assert command("plan", *OWN, "seed=1,2", "--json") == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)["runs"]) == 2
    assert json.loads(out)["estimated_seconds"] > 0
    assert not err, "what was measured is remembered"
    assert sweeps.units == []
    assert sorted(path.name for path in (tmp_path / "mlruns").iterdir()) == ["data", "speeds"]


def test_an_unknown_mode_of_the_sweeper_is_refused(command, sweeps, capsys):
    assert command("sweep", *OWN, "hydra.sweeper.mode=pln") == 1
    assert "expected one of plan, plan_json, train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("launcher", "wanted", "workers"),
    [
        ({"_target_": "a.BasicLauncher"}, "auto", 1),
        ({"_target_": "a.BasicLauncher"}, 3, 3),
        ({"_target_": "a.JoblibLauncher", "n_jobs": -1}, "auto", 8),
        ({"_target_": "a.JoblibLauncher", "n_jobs": -2}, "auto", 7),
        ({"_target_": "a.JoblibLauncher", "n_jobs": -20}, "auto", 1),
        ({"_target_": "a.JoblibLauncher", "n_jobs": 2}, "auto", 2),
        ({"_target_": "a.JoblibLauncher", "n_jobs": 2}, 5, 5),
        ({"_target_": "a.LocalLauncher"}, "auto", 8),
        ({"_target_": "a.SlurmLauncher", "array_parallelism": 256}, "auto", 256),
        ({"_target_": "a.SlurmLauncher", "array_parallelism": 256}, 12, 12),
    ],
)
def test_workers_are_what_the_launcher_runs_side_by_side(monkeypatch, bench, launcher, wanted, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    config = bench.config(execution__workers=wanted)
    assert engine_choice.count_workers(OmegaConf.create(launcher), config) == workers


# ---------------------------------------------------------------- report and ui


def test_report_hands_its_options_on(command, sweeps, tmp_path):
    assert (
        command("report", *OWN, "--metric", "test_acc", "--top", "3", "--group-by", "seed", "--output", "a b.csv") == 0
    )
    assert sweeps.reported.model_dump() == {
        "metric": "test_acc", "top": 3, "group_by": "seed", "output": "a b.csv", "page": True,
    }  # fmt: skip
    assert not (tmp_path / "mlruns").exists()


def test_ui_says_when_nothing_is_recorded(command, capsys):
    assert command("ui", *OWN) == 1
    assert "no runs are recorded in" in capsys.readouterr().err


def test_ui_says_when_the_database_is_damaged(command, tmp_path, capsys):
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").write_bytes(b"no database" * 100)
    assert command("ui", *OWN, "--port", "0") == 1
    assert "mlflow.db: cannot be used, got" in capsys.readouterr().err


def test_ui_leaves_a_server_to_the_browser(command, capsys):
    assert command("ui", *OWN, "tracking.uri=http://somewhere:1") == 1
    assert "open http://somewhere:1 in a browser" in capsys.readouterr().err


def test_a_port_in_use_is_refused_and_0_picks_one():
    refusal = pytest.raises(InputError, match=r"ui: port \d+ cannot be had on 127.0.0.1")
    with ui.socket.create_server(("127.0.0.1", 0)) as server, refusal:
        ui._find_port(server.getsockname()[1])
    assert ui._find_port(0) > 0


# ---------------------------------------------------------------- as a program


def program(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "stagetree", *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("typed", [[], ["--help"], ["-h"]])
def test_help_loads_nothing_heavy(typed):
    code = (
        "import sys; from stagetree.cli.main import main; sys.argv = sys.argv[:1] + sys.argv[2:]; main(); "
        "sys.exit(','.join({'torch', 'mlflow', 'pandas', 'hydra', 'pydantic'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, "-", *typed], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"\n  {name:8} {command.help}\n" in done.stdout for name, command in COMMANDS.items())
    assert max(map(len, done.stdout.splitlines())) <= 120


@pytest.mark.parametrize("name", COMMANDS)
def test_help_on_a_command_begins_with_what_it_takes_itself(command, capsys, name):
    assert command(name, "--help") == 0
    assert capsys.readouterr().out.startswith(f"stagetree {name}  {COMMANDS[name].help}\n")


def test_the_version_is_the_packages():
    assert program("--version").stdout == f"stagetree {stagetree.__version__}\n"


@pytest.mark.parametrize(
    ("line", "choices"),
    [
        (
            "stagetree ",
            ["train", "sweep", "plan", "watch", "report", "ui", "data", "predict", "export", "migrate", "verify"],
        ),
        ("stagetree s", ["sweep"]),
        ("stagetree report --m", ["--metric"]),
        (
            "stagetree sweep model=mlp,softmax 'schedule.stages=[(1,2)]' loss=",
            ["loss=cross_entropy", "loss=mse", "loss=nll"],
        ),
        ("stagetree train schedule=sm", ["schedule=smoke"]),
        ("stagetree model=so", ["model=softmax"]),
        ("~/bin/stagetree report report.gro", ["report.group_by="]),
    ],
)
def test_tab_completes_commands_options_groups_and_settings(line, choices):
    started = time.monotonic()
    done = program("-sc", "query=bash", COMP_LINE=line)
    assert (done.stdout.split(), done.stderr) == (choices, "")
    assert time.monotonic() - started < 6  # 0.3 s on a quiet machine
