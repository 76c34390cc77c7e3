"""``bugurt login`` and ``logout`` as a process, against a Telegram on the loopback."""

from __future__ import annotations

import base64
import json
import os
import select
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cli.telegram_file import load_telegram_env, read_telegram_file, write_telegram_file
from cli.telegram_secret import read_secret, remove_secret, secret_object, write_secret
from jobs.specs import ConfigError, ExitCode
from tests.conftest import ROOT
from tests.projects import new_project
from tests.telegram.api import Account, Api
from tests.telegram.channel import make_channel
from tests.telegram.faults import Faults, flood, migrate
from tests.telegram.server import ServerThread, TelegramServer

PHONE, CODE = "+79990000001", "12345"
API = ["--api-id", "12345", "--api-hash", "0123456789abcdef0123456789abcdef"]


class Machine:
    """A user's machine: a home folder, and a server that the ``bugurt`` there is made to trust."""

    def __init__(self, running: ServerThread, folder: Path) -> None:
        self.server = running.server
        self.running = running
        self.folder = folder
        self.file = folder / "telegram.json"
        self.key = folder / "key.pem"
        self.key.write_text(running.server.key.public_pem, encoding="ascii")

    def command(self, *args: str) -> list[str]:
        dc, centre = next(iter(self.server.dcs.items()))
        address = f"{self.server.host}:{centre.port}"
        launcher = ["-m", "tests.telegram.clients", "--key", str(self.key), "--server", address, "--dc", str(dc)]
        return [sys.executable, *launcher, "-m", "cli.main", *args]

    def env(self, **extra: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("BUGURT_", "AWS_", "KUBE"))}
        return {
            **kept,
            "HOME": str(self.folder),
            "BUGURT_TELEGRAM_FILE": str(self.file),
            "PYTHONPATH": str(ROOT),
            **extra,
        }

    def __call__(self, *args: str, typed: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*args),
            input=typed,
            env=self.env(**env),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def saved(self) -> dict[str, str]:
        found: dict[str, str] = json.loads(self.file.read_text())
        return found


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    with ExitStack() as stack:

        def start(*, account: Account | None = None, **options: Any) -> Machine:
            api = Api(make_channel(1, 5), account=account)
            return Machine(stack.enter_context(ServerThread(TelegramServer(api, **options))), tmp_path)

        yield start


@pytest.mark.plain
def test_code_and_password_then_logout(machine: Callable[..., Machine]) -> None:
    here = machine(account=Account(password="ёлки-палки"))
    done = here("login", *API, "--phone", PHONE, typed=f"00000\n{CODE}\nне тот\nёлки-палки\n")
    assert done.returncode == 0, done.stderr
    assert "logged in as Завхоз" in done.stdout
    assert stat.S_IMODE(here.file.stat().st_mode) == 0o600
    saved = here.saved()
    assert set(saved) == {"BUGURT_TELEGRAM_SESSION", "BUGURT_TELEGRAM_API_ID", "BUGURT_TELEGRAM_API_HASH"}
    for secret in (saved["BUGURT_TELEGRAM_SESSION"], "ёлки-палки", "0123456789abcdef"):
        assert secret not in done.stdout + done.stderr
    again = here("login", *API)
    assert (again.returncode, "already logged in as Завхоз" in again.stdout) == (0, True)
    out = here("logout")
    assert out.returncode == 0, out.stderr
    assert "logged out at Telegram, and removed" in out.stdout
    assert not here.file.exists()
    assert here.server.count("auth.LogOut") == 1
    assert "there is no session" in here("logout").stdout


@pytest.mark.parametrize("command", ["login", "logout"])
def test_without_telegrams_client_it_says_what_to_install(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import util

    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *more: None if name == "telethon" else find(name, *more))
    with new_project(tmp_path / "project") as project:
        assert "pip install 'bugurt[login]'" in project.fails(78, command)


def test_the_account_lives_at_another_data_centre(machine: Callable[..., Machine]) -> None:
    here = machine(account=Account(home_dc=4), ports={2: 0, 4: 0})
    done = here("login", *API, "--phone", PHONE, typed=f"{CODE}\n")
    assert done.returncode == 0, done.stderr
    from telethon.sessions import StringSession

    assert StringSession(here.saved()["BUGURT_TELEGRAM_SESSION"]).dc_id == 4


def test_qr_code(machine: Callable[..., Machine]) -> None:
    here = machine(account=Account(password="ёлки"))
    process = subprocess.Popen(
        here.command("login", *API, "--qr"),
        env=here.env(BUGURT_TELEGRAM_PASSWORD="ёлки"),
        cwd=here.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    drawn = read_until(process, "▀")
    here.running.wait_for("auth.ExportLoginToken", timeout=60)
    here.running.do(here.server.scan_qr)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, drawn + err
    assert "logged in as Завхоз" in out
    assert "tg://login" not in drawn + err
    assert here.saved()["BUGURT_TELEGRAM_SESSION"]


def read_until(process: subprocess.Popen[str], sign: str) -> str:
    """What came on standard error up to a sign in it."""
    assert process.stderr is not None
    found = ""
    deadline = time.monotonic() + 60
    while sign not in found:
        ready, _, _ = select.select([process.stderr], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"nothing more came after: {found}"
        line = process.stderr.readline()
        assert line, f"it ended after: {found}"
        found += line
    return found


def test_config_ini_of_the_reference_method(machine: Callable[..., Machine]) -> None:
    here = machine()
    (here.folder / "config.ini").write_text(
        f"[Telegram]\napi_id = 12345\napi_hash = 0123456789abcdef0123456789abcdef\nphone = {PHONE}\nusername = me\n"
    )
    done = here("login", typed=f"{CODE}\n")
    assert done.returncode == 0, done.stderr
    # options and environment win over the file
    done = here("login", "--force", "--phone", "+10000000000", typed=f"{CODE}\n")
    assert done.returncode == ExitCode.BAD_CONFIG
    assert "Telegram knows no such phone number" in done.stderr
    done = here("login", "--force", typed=f"{CODE}\n", BUGURT_TELEGRAM_API_ID="54321")
    assert done.returncode == ExitCode.BAD_CONFIG
    assert "get your own at https://my.telegram.org" in done.stderr


HASH = "fedcba9876543210fedcba9876543210"
WRONG: dict[str, tuple[list[str], str, dict[str, str], int, str]] = {
    "no input": ([*API, "--phone", PHONE], "", {}, 78, "the input ended where the login asked for the code"),
    "no input at all": ([], "", {}, 78, "the input ended where the login asked for api_id"),
    "wrong code": ([*API, "--phone", PHONE], "1\n2\n3\n", {}, 78, "the code was wrong 3 times"),
    "wrong api id": (["--api-id", "x", "--api-hash", HASH], "", {}, 78, "must be the number that"),
    "wrong api hash": (["--api-id", "1", "--api-hash", "x"], "", {}, 78, "must be the 32 hex digits"),
    "wrong target": (["--target", "moon"], "", {}, 64, "'moon' is neither 'local' nor 'kubernetes'"),
    "wrong proxy": (API, "", {"BUGURT_TELEGRAM_PROXY": "socks5://u:topsecret@"}, 78, "BUGURT_TELEGRAM_PROXY is not"),
    "other account": (
        [*API, "--phone", PHONE, "--username", "@somebody"],
        f"{CODE}\n",
        {},
        78,
        "and not @somebody; nothing is kept",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_sentence_for_what_is_wrong(machine: Callable[..., Machine], case: str) -> None:
    args, typed, env, code, sentence = WRONG[case]
    here = machine()
    done = here("login", *args, typed=typed, **env)
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr
    assert "topsecret" not in done.stderr
    assert done.stderr.count("error: ") == 1
    assert not here.file.exists()
    if case == "other account":
        assert here.server.count("auth.LogOut") == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f"api_id = 1\napi_hash = {HASH}\n", "config.ini is broken at line 1"),
        (f"[Telegram]\napi_id\n{HASH}\n", "config.ini is broken at line 2"),
        (f"[Telegram]\napi_id = 1\napi_id = {HASH}\n", "config.ini is broken at line 3"),
        ("[Other]\nx = 1\n", "config.ini has no section [Telegram]"),
    ],
)
def test_a_broken_config_ini(machine: Callable[..., Machine], text: str, sentence: str) -> None:
    here = machine()
    (here.folder / "config.ini").write_text(text)
    done = here("login")
    assert done.returncode == ExitCode.BAD_CONFIG
    assert sentence in done.stderr
    assert HASH not in done.stderr


def test_floods_of_a_login(machine: Callable[..., Machine]) -> None:
    here = machine(faults=Faults(flood(3700, "auth.SendCode")))
    done = here("login", *API, "--phone", PHONE)
    assert done.returncode == ExitCode.TRY_AGAIN
    assert "wait 1 h 1 min" in done.stderr
    here.running.do(lambda: setattr(here.server, "faults", Faults(migrate(3, "PHONE", "auth.SendCode", times=1))))


def test_the_file_must_be_the_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "telegram.json"
    values = {"BUGURT_TELEGRAM_SESSION": "s", "BUGURT_TELEGRAM_API_ID": "1", "BUGURT_TELEGRAM_API_HASH": "h"}
    for name in list(os.environ):
        if name.startswith("BUGURT_TELEGRAM"):
            monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match="no Telegram session on this machine; run 'bugurt login'"):
        load_telegram_env(path)
    old = os.umask(0)
    try:
        write_telegram_file(values, path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_telegram_env(path) == values
    monkeypatch.setenv("BUGURT_TELEGRAM_PROXY", "socks5://x:1")
    assert load_telegram_env(path)["BUGURT_TELEGRAM_PROXY"] == "socks5://x:1"
    for mode in (0o640, 0o604, 0o666):
        path.chmod(mode)
        with pytest.raises(ConfigError, match=f"others can read it .mode {mode:04o}.; run: chmod 600"):
            load_telegram_env(path)
    path.chmod(0o600)
    for text in ("{", "[]", '{"BUGURT_TELEGRAM_SESSION": "s"}', '{"BUGURT_TELEGRAM_SESSION": 5}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="run 'bugurt login --force'"):
            read_telegram_file(path)
    assert [p.name for p in path.parent.iterdir()] == ["telegram.json"]
    for name, value in {**values, "BUGURT_TELEGRAM_SESSION": "from the environment"}.items():
        monkeypatch.setenv(name, value)
    assert load_telegram_env(path)["BUGURT_TELEGRAM_SESSION"] == "from the environment"


def test_a_wrong_mode_is_told_by_the_command(machine: Callable[..., Machine]) -> None:
    here = machine()
    write_telegram_file({"BUGURT_TELEGRAM_SESSION": "topsecret"}, here.file)
    here.file.chmod(0o644)
    done = here("login", *API)
    assert done.returncode == ExitCode.BAD_CONFIG
    assert f"run: chmod 600 {here.file}" in done.stderr
    assert "topsecret" not in done.stderr


class Recorder:
    """An API server that keeps Secrets in a dict: the wire itself is tested with the cluster."""

    host = "https://cluster.invalid"

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}

    def request(self, method: str, path: str, *, body: Any = None, **_: Any) -> dict[str, Any]:
        from cli.clusters.kubernetes_api import ApiError

        if method == "PATCH":
            self.objects[path] = body
        if path not in self.objects:
            raise ApiError(404, "NotFound", "not found")
        return self.objects.pop(path) if method == "DELETE" else self.objects[path]


def test_a_cluster_keeps_it_in_a_secret() -> None:
    from cli.clusters.kubernetes_api import Access

    api = Recorder()
    access = Access(api, "red", "test")  # type: ignore[arg-type]
    values = {"BUGURT_TELEGRAM_SESSION": "s", "BUGURT_TELEGRAM_API_ID": "1", "BUGURT_TELEGRAM_API_HASH": "h"}
    assert read_secret(access, "bugurt-telegram") is None
    write_secret(access, "bugurt-telegram", values)
    assert api.objects["/api/v1/namespaces/red/secrets/bugurt-telegram"] == secret_object(
        "bugurt-telegram", "red", values
    )
    made = secret_object("bugurt-telegram", "red", values)
    assert made["data"]["BUGURT_TELEGRAM_SESSION"] == base64.b64encode(b"s").decode()
    assert read_secret(access, "bugurt-telegram") == values
    api.objects["/api/v1/namespaces/red/secrets/bugurt-telegram"]["data"] = {"BUGURT_TELEGRAM_SESSION": "!"}
    with pytest.raises(ConfigError, match="is damaged; run 'bugurt login --force'"):
        read_secret(access, "bugurt-telegram")
    assert remove_secret(access, "bugurt-telegram")
    assert not remove_secret(access, "bugurt-telegram")
