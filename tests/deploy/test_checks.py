"""The checks that refuse an unsuitable machine; a fake `docker` command answers them."""

import json
import os
import re
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from deploy.containers import checks, env_checks, environment
from deploy.containers.stack import Project
from deploy.errors import DeployError
from deploy.places import REPOSITORY
from fleet.contract import queues

GIB = 1024**3


def now(skew: timedelta = timedelta()) -> str:
    return (datetime.now(UTC) + skew).strftime("%Y-%m-%dT%H:%M:%S.%f") + "123Z"


def engine(**differing: object) -> dict:
    folder = str(REPOSITORY)
    return {
        "ServerVersion": "28.2.2",
        "NCPU": 8,
        "MemTotal": 32 * GIB,
        "DockerRootDir": folder,
        "SystemTime": now(),
        "Runtimes": {"runc": {}},
        **differing,
    }


NOTHING = {"environment": dict.fromkeys(environment.variables(), "")}
ALL = {
    "services": {
        **{
            key: {"environment": dict.fromkeys(environment.variables(), "")}
            for key in ("values", "is-set")
        },
        **{f"{name}-worker": {"command": ["-m", "fleet", "worker", name]} for name in queues()},
    },
}
"""Compose's output if no variable is set and each queue has a worker service."""
WELL = {
    "--version": "Docker version 28.2.2, build e6534b4",
    "version --format": '{"Server": {"Version": "28.2.2"}}',
    "compose version": "2.30.0",
    "compose -f": json.dumps(ALL),
    "compose --env-file": json.dumps(ALL),
    "compose -p": "",
    "buildx version": "github.com/docker/buildx v0.13.1 788433953af10f2a",
    "image ls": "",
    "volume ls": "",
}


@pytest.fixture
def answering(monkeypatch):
    def answer(info: dict | None = None, fault: str = "", **differing: str | None) -> None:
        answers = {"info --format": info, "fault": fault, **WELL}
        answers |= {
            name.replace("_", " ").replace("  ", "--"): text for name, text in differing.items()
        }
        monkeypatch.setenv("FAKE_DOCKER", json.dumps(answers))
        fakes = REPOSITORY / "tests" / "fakes"
        monkeypatch.setenv("PATH", f"{fakes}{os.pathsep}{os.environ['PATH']}")

    return answer


def deploy(*words: str) -> subprocess.CompletedProcess:
    """Run the command line, with the fake `docker` first on its path."""
    command = [sys.executable, "-m", "deploy", *words]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def faults(given: dict[str, str] | None = None) -> dict[str, checks.Finding]:
    held = {8080, 5555} if given is None else set()
    found = checks.check(lambda: given or {}, lambda: held)
    return {finding.name: finding for finding in found if finding.remedy}


def of_variables(given: dict[str, str], held: set[str] = frozenset()) -> dict:
    """Findings for variables whose values are refused; does not call `docker`."""
    found = env_checks.of_variables(given, held)
    return {finding.name: finding for finding in found if finding.remedy}


def test_a_machine_that_has_all_of_it_passes(answering, monkeypatch):
    monkeypatch.setattr(checks, "MIN_DISK_GIB", 0)
    answering(engine())
    assert faults() == {}


@pytest.mark.parametrize("fraction", ["", ".5", ".123456789"])
@pytest.mark.parametrize("zone", ["Z", "+00:00"])
def test_an_engines_time_is_read_with_and_without_a_fraction(
    answering, monkeypatch, fraction, zone
):
    monkeypatch.setattr(checks, "MIN_DISK_GIB", 0)
    answering(engine(SystemTime=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}{fraction}{zone}"))
    assert faults() == {}


@pytest.mark.parametrize(
    ("info", "name", "found", "remedy"),
    [
        ({"ServerVersion": "19.03.5"}, "Docker engine", "19.03.5", "install 20.10 or later"),
        ({"NCPU": 1}, "cores", "1", "at least 2"),
        ({"MemTotal": 4 * GIB}, "memory", "4 GiB", "at least 6 GiB"),
        ({"SystemTime": now(timedelta(minutes=30))}, "clock", "machine's by 1", "NTP"),
    ],
)
def test_each_shortage_has_its_figure_and_its_remedy(answering, info, name, found, remedy):
    answering(engine(**info))
    fault = faults()[name]
    assert found in fault.found
    assert remedy in fault.remedy


@pytest.mark.parametrize(
    "said",
    [
        # First case: `docker` is Podman's own command, whose `info` has other fields.
        # Second case: `docker` is Docker's command, connected to Podman's service.
        {"__version": "podman version 5.4.0", "info_--format": '{"host": {}, "version": {}}'},
        {"version_--format": '{"Server": {"Components": [{"Name": "Podman Engine"}]}}'},
    ],
)
def test_podman_is_named(answering, said):
    answering(engine(), **said)
    fault = faults()["Docker engine"]
    assert fault.found == "this is Podman"
    assert "install Docker Engine 20.10 or later" in fault.remedy


def test_a_full_disk_is_named(answering, monkeypatch):
    monkeypatch.setattr(checks, "MIN_DISK_GIB", 10**6)
    answering(engine())
    assert "docker system df" in faults()["disk"].remedy


def test_images_that_are_built_take_no_more_room(answering, monkeypatch):
    monkeypatch.setattr(checks, "MIN_DISK_GIB", 10**6)
    monkeypatch.setattr(checks, "MIN_DISK_GIB_BUILT", 0)
    answering(engine(), image_ls="0123456789ab")
    assert "disk" not in faults()


@pytest.mark.parametrize(
    ("plugin", "version"),
    [("compose", "1.29.2"), ("compose", None), ("buildx", "v0.5.1"), ("buildx", None)],
)
def test_an_old_or_missing_plugin_is_named_with_its_remedy(answering, plugin, version):
    fault = f"docker: '{plugin}' is not a docker command"
    answering(engine(), fault, **{f"{plugin}_version": version})
    ended = deploy("check")
    assert ended.returncode == 1
    assert re.search(rf"{version or fault} → install", ended.stderr), ended.stderr
    assert "Traceback" not in ended.stderr


PROJECT = [
    {"Service": "redis", "State": "running", "Publishers": [{"PublishedPort": 6379}]},
    {"Service": "init", "State": "exited", "Publishers": None},
]


@pytest.mark.parametrize(
    "listed", [json.dumps(PROJECT), "\n".join(map(json.dumps, PROJECT))], ids=["array", "lines"]
)
def test_what_runs_is_read_from_every_compose(answering, listed, tmp_path):
    answering(engine(), **{"compose_-p": listed})
    project = Project("any", tmp_path / ".env")
    assert [each["Service"] for each in project.running()] == ["redis"]
    assert project.held_ports() == {6379}


@pytest.mark.parametrize(
    ("folder", "remedy"),
    [("music", "absolute path"), ("/nowhere/music", "is not a folder"), ("closed", "chmod -R")],
)
def test_music_that_the_workers_could_not_read_is_named(folder, remedy, tmp_path):
    if folder == "closed":
        folder = str(tmp_path / "genres")
        (tmp_path / "genres" / "rock").mkdir(parents=True)
        (tmp_path / "genres" / "rock" / "1.wav").touch(mode=0o600)
        (tmp_path / "genres" / "rock").chmod(0o755)
    finding = of_variables({"AUDIO_DIR": folder})["AUDIO_DIR"]
    assert remedy in finding.found + finding.remedy


def test_a_folder_without_music_is_named(tmp_path):
    (tmp_path / "rock").mkdir()
    fault = of_variables({"AUDIO_DIR": str(tmp_path)})["AUDIO_DIR"]
    assert fault.found == f"no subfolder of {tmp_path} contains a file"


def test_two_starts_of_a_project_at_once_are_one(answering, tmp_path):
    answering(engine())
    project = Project(f"test-{tmp_path.name}", tmp_path / ".env")
    with project.alone():
        for words in (("up", "--env-file", str(tmp_path / ".env")), ("down",)):
            ended = deploy(*words, "--project", project.name)
            assert ended.returncode == 1
            assert "another start or stop of test-" in ended.stderr
    assert not (tmp_path / ".env").exists()
    with project.alone():
        pass


def test_secrets_are_not_made_where_nobody_knows_whether_there_is_a_database(answering, tmp_path):
    answering(None, "Cannot connect to the Docker daemon", volume_ls=None)
    ended = deploy("env", "--env-file", str(tmp_path / ".env"))
    assert ended.returncode == 1
    assert "the Docker engine does not answer" in ended.stderr
    assert not (tmp_path / ".env").exists()


def test_secrets_of_a_database_that_is_there_are_not_made_anew(answering, tmp_path):
    answering(engine(), volume_ls="music-genre_postgres")
    ended = deploy("env", "--env-file", str(tmp_path / ".env"))
    assert ended.returncode == 1
    assert "restore the file, or delete only the database" in ended.stderr
    assert not (tmp_path / ".env").exists()


@pytest.mark.parametrize(
    ("fault", "remedy"),
    [
        ("Cannot connect to the Docker daemon", "start it"),
        ("permission denied while trying to connect", "group docker"),
        ("something else", "something else"),
    ],
)
def test_an_engine_that_does_not_answer_is_one_line(answering, fault, remedy):
    answering(None, fault)
    with pytest.raises(DeployError, match=remedy):
        checks.check(dict, set)


def test_no_docker_at_all_is_one_line(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DeployError, match="install Docker Engine"):
        checks.check(dict, set)


def test_a_taken_port_is_named_unless_the_stack_holds_it():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        fault = of_variables({"WEB_PORT": port, "FLOWER_PORT": "no"})
        assert port in fault["WEB_PORT"].found
        assert "WEB_PORT in .env" in fault["WEB_PORT"].remedy
        assert "'no' is not a port" in fault["FLOWER_PORT"].found
        assert "WEB_PORT" not in of_variables({"WEB_PORT": port}, {port})
        assert "WEB_PORT" in of_variables({"WEB_PORT": port}, {"8080"})
    same = of_variables({"WEB_PORT": "5555"})
    assert same["WEB_PORT"].found == "port 5555 is also used for FLOWER_PORT"


def test_the_docker_way_says_what_it_means_and_wants_a_socket(answering, tmp_path):
    answering(engine())
    wanted = {"COMPOSE_PROFILES": "s3,docker", "DOCKER_SOCKET": str(tmp_path / "docker.sock")}
    fault = faults(wanted)["Docker way"]
    assert fault.found.endswith("docker.sock is not a socket")
    assert "DOCKER_SOCKET in .env" in fault.remedy
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(wanted["DOCKER_SOCKET"])
        found = {each.name: each for each in checks.check(lambda: wanted, set)}["Docker way"]
    assert "root on this machine" in found.found
    assert found.remedy == ""
    assert "Docker way" not in {each.name for each in checks.check(dict, set)}


@pytest.mark.parametrize(("daily", "told"), [("", "on demand"), ("0", "on demand"), ("1", "daily")])
def test_the_schedule_is_said(daily, told):
    found = {each.name: each for each in env_checks.of_variables({"DAILY": daily}, set())}
    assert told in found["schedule"].found


def test_a_schedule_that_is_neither_yes_nor_no_is_refused():
    assert of_variables({"DAILY": "yes"})["DAILY"].found == "'yes' is neither 1 nor 0"


def test_a_gpu_wants_its_driver_and_toolkit_where_it_is_asked_for(answering, tmp_path, monkeypatch):
    answering(engine())
    wanted = {"COMPOSE_FILE": "docker-compose.yml:deploy/compose/gpu.yml"}
    assert {"GPU driver", "GPU toolkit"} <= set(faults(wanted))
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    answering(engine(Runtimes={"runc": {}, "nvidia": {}}))
    assert not {"GPU driver", "GPU toolkit"} & set(faults(wanted))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *[("CPU_WORKER_MEMORY", text) for text in ("6", "four", "-1g", "0g", "4x")],
        *[("CPU_WORKER_TMP", text) for text in ("6", "512mb", "0.5g", "0g", "1073741824")],
    ],
)
def test_what_docker_or_the_kernel_would_not_take_for_a_size_is_refused(name, text):
    """Docker would read `6` as six bytes. A tmpfs size is a whole number and one letter."""
    fault = of_variables({name: text})[name]
    assert fault.found == f"{text!r} is not a size"
    assert f"set {name} in .env to" in fault.remedy


def test_sizes_may_be_written_as_docker_takes_them():
    for text in ("4g", "4G", "4gb", "4GiB", "4 GB", "1.5g", "1t", "4294967296"):
        assert "CPU_WORKER_MEMORY" not in of_variables({"CPU_WORKER_MEMORY": text}), text
    assert "CPU_WORKER_TMP" not in of_variables({"CPU_WORKER_TMP": "512M"})


def test_files_in_tmp_leave_room_for_the_tasks():
    small = {"tmpfs": ["/tmp:mode=1777,exec,size=1G"], "mem_limit": str(GIB)}
    (fault,) = [
        each for each in env_checks.of_services({"cpu-worker": small}) if "TMP" in each.name
    ]
    assert (fault.name, fault.found) == (
        "CPU_WORKER_TMP",
        "the worker's /tmp may take 1024 MiB, more than half of the worker's 1024 MiB of memory",
    )
    assert fault.remedy == "set CPU_WORKER_TMP in .env to 256m"
    enough = {"cpu-worker": small | {"mem_limit": str(2 * GIB)}, "gpu-worker": {"tmpfs": None}}
    assert not [each for each in env_checks.of_services(enough) if "TMP" in each.name]


@pytest.mark.parametrize("text", ["localhost:8080", "ftp://a", "https://", "https://a/b c"])
def test_what_is_no_address_of_a_web_page_is_refused(text):
    assert "is not an HTTP address" in of_variables({"BASE_URL": text})["BASE_URL"].found
    assert "BASE_URL" not in of_variables({"BASE_URL": "https://airflow.example.org/music"})


def test_variables_that_nobody_uses_are_told_and_slips_refused():
    near, *far = env_checks.unused(
        ["AUDIODIR", "SMTP_PASSWORD", "AWS_PROFILE", "DB_PORT", "LOG_DIR"]
    )
    assert near.found == "AUDIODIR is not used by any file of the stack"
    assert near.remedy == "correct it to AUDIO_DIR, or delete the line"
    assert [each.remedy for each in far] == [""] * 4


def test_a_queue_without_a_service_and_a_service_without_a_queue_are_named():
    services = {"a": {"command": ["python", "-m", "fleet", "worker", "huge"]}, "b": {}}
    found = {each.name: each.remedy for each in env_checks.workers(services)}
    assert found == {
        **{
            f"queue {name}": f"add a service {name}-worker that runs "
            f"`python -m fleet worker {name}`"
            for name in queues()
        },
        "queue huge": "add a table [queues.huge], or remove the service",
    }
