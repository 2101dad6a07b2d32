"""What a team runs: PostgreSQL, and MLflow's server on it with logins and proxied artifacts, on loopback."""

import os
import pwd
import secrets
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from installed import debian
from sweeps import PATIENCE_S, wait_until

AUTH = """\
[mlflow]
default_permission = EDIT
database_uri = {uri}
admin_username = admin
admin_password = {password}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""


@contextmanager
def postgres() -> Iterator[str]:
    """PostgreSQL with the databases `mlflow` and `auth`; the URI of the first."""
    debian("postgresql")
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []

    def call(program: str, *words: str) -> None:
        subprocess.run([*as_user, str(binaries / program), *words], check=True, stdout=subprocess.DEVNULL, cwd="/")

    with TemporaryDirectory(prefix="stagetree-pg-") as data:
        if as_user:  # PostgreSQL refuses to run as root
            os.chown(data, pwd.getpwnam("postgres").pw_uid, -1)
        port = free_port()
        call("initdb", "-D", data, "-U", "mlflow", "-E", "UTF8", "--auth=trust")
        options = f"-p {port} -h 127.0.0.1 -k {data} -c max_connections=200"
        call("pg_ctl", "start", "-w", "-D", data, "-l", f"{data}/log.txt", "-o", options)
        try:
            for name in ("mlflow", "auth"):
                call("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", name)
            yield f"postgresql://mlflow@127.0.0.1:{port}/mlflow"
        finally:
            call("pg_ctl", "stop", "-w", "-m", "immediate", "-D", data)


@dataclass(frozen=True)
class Server:
    uri: str
    password: str
    """Of `admin`, and of all that `add_user` makes."""
    artifacts: Path

    def login(self, user: str) -> dict[str, str]:
        """The environment with which MLflow's clients log in."""
        return {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": self.password}

    def add_user(self, name: str) -> None:
        script = (
            "import sys; from mlflow.server.auth.client import AuthServiceClient; "
            "AuthServiceClient(sys.argv[1]).create_user(sys.argv[2], sys.argv[3])"
        )
        command = [sys.executable, "-c", script, self.uri, name, self.password]
        subprocess.run(command, check=True, env={**os.environ, **self.login("admin")})


@contextmanager
def mlflow_server(folder: Path, database: str, *, workers: int = 1) -> Iterator[Server]:
    """MLflow's server with logins, its artifacts in `folder/served`."""
    server = Server(f"http://127.0.0.1:{free_port()}", secrets.token_hex(8), folder / "served")
    config = folder / "auth.ini"
    config.write_text(AUTH.format(uri=database.removesuffix("mlflow") + "auth", password=server.password))
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--app-name", "basic-auth",
        "--artifacts-destination", str(server.artifacts), "--host", "127.0.0.1",
        "--port", server.uri.rpartition(":")[2], "--workers", str(workers),
    ]  # fmt: skip
    environment = {
        **os.environ, "MLFLOW_AUTH_CONFIG_PATH": str(config), "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
        "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }  # fmt: skip
    log = folder / "server.txt"
    with open(log, "wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True, cwd=folder)
    try:
        _wait(f"{server.uri}/health", process, log)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(PATIENCE_S)


@contextmanager
def object_store(bucket: str) -> Iterator[dict[str, str]]:
    """An object store that speaks S3's protocol (moto's server); the environment with which clients find it."""
    import boto3

    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], **quiet
    ) as process:
        try:
            _wait(uri, process)
            keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
            names = ("aws_access_key_id", "aws_secret_access_key", "region_name")
            client = boto3.client("s3", endpoint_url=uri, **dict(zip(names, keys.values(), strict=True)))
            client.create_bucket(Bucket=bucket)
            yield {"MLFLOW_S3_ENDPOINT_URL": uri, **keys}
        finally:
            process.terminate()


def _wait(uri: str, process: subprocess.Popen, log: Path | None = None) -> None:
    def answers() -> bool:
        assert process.poll() is None, f"the server of {uri} ended\n{log.read_text()[-4000:] if log else ''}"
        try:
            urllib.request.urlopen(uri).close()
        except OSError:
            return False
        return True

    wait_until(answers)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
