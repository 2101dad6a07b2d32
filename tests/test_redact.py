"""Secrets stand nowhere in what is recorded: one place writes configurations and commands for the record."""

import pytest
from servers import mlflow_server
from sweeps import small, stagetree

from stagetree import redact


def test_a_password_of_the_store_stands_in_no_file_and_no_row(tmp_path, arrays):
    """A real sweep to a server with logins, its database and artifacts included."""
    work, host = tmp_path / "work", tmp_path / "host"
    work.mkdir()
    host.mkdir()
    with mlflow_server(host, f"sqlite:///{host}/mlflow") as server:
        uri = server.uri.replace("//", f"//admin:{server.password}@")
        words = [*small(arrays), "model=softmax", "hydra/launcher=basic", "tracking=server", f"tracking.uri={uri}"]
        grid = [*words, "schedule.stages=[(1,1e-2)]", "seed=1,2"]
        done = stagetree(work, "sweep", *grid)
        assert done.returncode == 0, done.stdout + done.stderr
        shown = stagetree(work, "report", *words)
        assert shown.returncode == 0, shown.stderr
        commands = stagetree(work, "export", "best", "out", *words)
        assert commands.returncode == 0, commands.stderr
        wrong = stagetree(work, "report", *words, f"tracking.uri={uri.replace('127.0.0.1', '127.0.0.1:1')}")
        assert wrong.returncode == 1
    for said in (done, shown, commands, wrong):
        assert server.password not in said.stdout + said.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "auth.ini"]
    holding = [path for path in files if server.password.encode() in path.read_bytes()]
    assert not holding
    masked = uri.replace(server.password, "***").encode()
    told = {path.name for path in files if masked in path.read_bytes()}
    assert told >= {"mlflow", "sweep.json", "leaderboard.html", "config.yaml"}  # which say where to give it


HIDDEN = [
    ("postgresql://u:hunter2@host/db", "postgresql://u:***@host/db"),
    ("mysql+pymysql://u:hun@ter2:x/y@host:3306/db", "mysql+pymysql://u:***@host:3306/db"),
    ("https://hunter2@host/x", "https://***@host/x"),
    ("http://h:1/?token=hunter2&a=1", "http://h:1/?token=***&a=1"),
    ("wasbs://c@a.net/x?sig=hunter2", "wasbs://c@a.net/x?sig=***"),
    ("sqlite:///a.db?password=hunter2", "sqlite:///a.db?password=***"),
    ("+tracking.api_key=hunter2", "+tracking.api_key=***"),
    ("a={uri:'http://u:hunter2@h',password:hunter2}", "a={uri:'http://u:***@h',password:***}"),
    ("mssql:///?odbc_connect=DRIVER%3Dx%3BPWD%3Dhunter2", "mssql:///?odbc_connect=***"),
]
SHOWN = [
    "postgresql://mlflow@host/db", "http://127.0.0.1:5000", "sqlite:////a/b.db", "s3://bucket/path", "seed=1,2",
    "tracking.uri=http://u:${oc.env:PASSWORD}@h", "tracking.token=${oc.env:TOKEN}", "schedule.stages=[[1,0.1]]",
    "dataset.root=/home/me@work/x", "http://u:***@h",
]  # fmt: skip


@pytest.mark.parametrize(("given", "shown"), HIDDEN)
def test_what_is_secret_is_hidden_wherever_it_stands(given, shown):
    assert redact.redact(given) == shown
    assert redact.redact_words([given]) == [shown]
    assert redact.redact_values({"a": [given, 1], "b": None}) == {"a": [shown, 1], "b": None}


def test_a_word_of_a_command_may_hold_spaces_and_quotes():
    words = ["tracking.uri='http://u:hun ter\"2@h'", "+x.password=hun ter'2"]
    assert redact.redact_words(words) == ["tracking.uri='http://u:***@h'", "+x.password=***"]
    assert redact.redact_values({"secret": "hunter2", "token": None}) == {"secret": "***", "token": None}


@pytest.mark.parametrize("text", SHOWN)
def test_what_is_no_secret_stays(text):
    assert redact.redact(text) == text
    assert redact.redact_words([text]) == [text]


def test_artifacts_cannot_be_kept_behind_a_password_that_mlflow_would_write_down(tmp_path):
    done = stagetree(tmp_path, "plan", "tracking.artifacts=ftp://u:hunter2@host/x")
    assert done.returncode == 1
    assert done.stderr.startswith("tracking: artifacts must not hold a password")
    assert "hunter2" not in done.stderr
