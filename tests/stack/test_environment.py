"""The `.env` file: values are generated, kept or refused, and Compose itself reads the file.

These tests need the docker command and Compose, but no engine.
"""

import json
import os
import re
import subprocess

import pytest

from deploy.containers import dags_git, env_checks, environment
from deploy.containers.stack import Project
from deploy.errors import DeployError
from deploy.places import REPOSITORY

COMPOSE = (REPOSITORY / "docker-compose.yml").read_text()
EXAMPLE = (REPOSITORY / ".env.example").read_text()


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".env"


def with_secrets(path, **values: str) -> None:
    environment.ensure(path)
    found = environment.read(path) | values
    path.write_text("".join(f"{name}='{value}'\n" for name, value in found.items()))


def test_every_secret_is_generated_once_private_and_of_its_own(path):
    assert environment.ensure(path) == list(environment.SECRETS)
    assert path.stat().st_mode & 0o777 == 0o600
    found = environment.read(path)
    values = [found[name] for name in environment.SECRETS]
    assert len(set(values)) == len(values)
    assert all(len(value) >= 32 for value in values)
    before = path.read_bytes()
    assert environment.ensure(path) == []
    assert path.read_bytes() == before


def test_what_is_there_stays_and_what_is_missing_is_added(path):
    path.write_text("# mine\nWEB_PORT=9\nADMIN_PASSWORD=chosen-by-our-security-team")
    generated = environment.ensure(path)
    assert "ADMIN_PASSWORD" not in generated
    assert path.read_text().startswith(
        "# mine\nWEB_PORT=9\nADMIN_PASSWORD=chosen-by-our-security-team\n"
    )
    assert set(environment.read(path)) == {*environment.SECRETS, "WEB_PORT"}
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("ADMIN_PASSWORD", "", "is empty"),
        ("ADMIN_PASSWORD", "short", "has 5 characters"),
        ("POSTGRES_PASSWORD", "changeme-changeme", "is a placeholder"),
        ("FLOWER_PASSWORD", "your-password-here", "is a placeholder"),
        ("REDIS_WORKER_PASSWORD", "with/slash-and@sign#", "not safe in a URL"),
        ("ADMIN_PASSWORD", "please-CHANGE-ME-before-you-go-to-production", "is a placeholder"),
        ("JWT_SECRET", "abcdefghijklmnopqrstuvwxyz012345", "has 32 characters, fewer than 64"),
        ("FERNET_KEY", "sixteen-and-more-characters", "neither a key of 32 bytes"),
        ("FERNET_KEY", f"{'A' * 43}=,old-and-no-key", "nor a comma-separated list"),
    ],
)
def test_a_secret_that_is_none_is_refused_by_name_and_not_shown(path, name, value, fault):
    with_secrets(path, **{name: value})
    before = path.read_bytes()
    with pytest.raises(DeployError, match=rf"{name} in .*{fault}.*run `make env`") as refused:
        environment.ensure(path)
    assert not value or value not in str(refused.value)
    assert path.read_bytes() == before


def test_while_fernet_keys_are_rotated_there_are_two(path):
    new, old = (environment.SECRETS["FERNET_KEY"]() for _ in range(2))
    with_secrets(path, FERNET_KEY=f"{new},{old}")
    environment.ensure(path)
    assert environment.read(path)["FERNET_KEY"] == f"{new},{old}"


def test_a_bad_secret_of_a_database_is_to_be_restored(path):
    with_secrets(path, ADMIN_PASSWORD="changeme")
    with pytest.raises(DeployError, match="fewer than 16; restore the value with which"):
        environment.ensure(path, has_data=lambda: True)


def test_a_missing_file_and_a_line_that_is_none_are_named(path):
    with pytest.raises(DeployError, match="is missing; restore it, or run `make env`"):
        environment.read(path)
    path.write_text("# all well\nWEB_PORT 8080\n")
    with pytest.raises(DeployError, match=r"Compose cannot read .* line 2; check that each line"):
        environment.ensure(path)
    path.write_bytes(b"WEB_PORT=1\nAUDIO_DIR=/caf\xe9\n")
    with pytest.raises(DeployError, match="line 2 is not UTF-8; save the file as UTF-8"):
        environment.ensure(path)
    assert path.read_bytes() == b"WEB_PORT=1\nAUDIO_DIR=/caf\xe9\n"


@pytest.mark.parametrize("value", ["'hunter-2-unclosed", "hunter-2${-unclosed", "${NO:?hunter-2}"])
def test_what_compose_says_of_a_line_does_not_show_its_secret(path, value):
    path.write_text(f"TAG=1\nADMIN_PASSWORD={value}\n")
    with pytest.raises(DeployError, match="Compose cannot read") as refused:
        environment.read(path)
    assert "hunter" not in str(refused.value)


SPELLINGS = [
    *("/music/rock", "/music/a$b", "/music/a$$b", "/music/rock #1", "/music/rock#1", "/music/c:d"),
    *('"/music/a b"', "'/music/a$b'", '"/music/${TAG}"', " /music/rock ", "/music/ro\\ck"),
    *("/music//rock/", '"/music/it\'s"', "/music/täuble"),
]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", ["AUDIO_DIR=", "export AUDIO_DIR=", "AUDIO_DIR = "])
def test_the_folder_that_is_checked_is_the_one_that_is_mounted(path, name, spelling):
    environment.ensure(path)
    text = path.read_text()
    path.write_text(f"TAG=x\n{text}{name}{spelling}\n")
    checked = environment.read(path)["AUDIO_DIR"]
    words = ["docker", "compose", "--env-file", path, "config", "--format", "json"]
    rendered = json.loads(subprocess.check_output(words, cwd=REPOSITORY))
    for service in ("cpu-worker", "gpu-worker"):
        mounts = rendered["services"][service]["volumes"]
        (source,) = [each["source"] for each in mounts if each["target"] == "/data/genres_original"]
        assert os.path.normpath(source.replace("$$", "$")) == os.path.normpath(checked)
    assert "AUDIO_DIR" not in environment.unknown(path, [])


def test_variables_are_read_and_replaced_however_they_are_written(path):
    path.write_bytes("\ufeffexport WEB_PORT = '8081'\nFLOWER_PORT: 5556 # ours\n".encode())
    assert environment.read(path) == {"WEB_PORT": "8081", "FLOWER_PORT": "5556"}
    environment.ensure(path, chosen={"WEB_PORT": "8082", "FLOWER_PORT": "5557"})
    assert path.read_text().startswith("WEB_PORT=8082\nFLOWER_PORT=5557\n")


def test_names_that_no_file_of_the_stack_uses_are_found(path, tmp_path):
    own = tmp_path / "own.yml"
    own.write_text("services: {a: {image: ${MY_IMAGE}}}\n")
    path.write_text("AUDIODIR=/x\nexport MY_IMAGE=y\nCOMPOSE_PARALLEL_LIMIT=1\n# NOT=1\nTAG=1\n")
    assert environment.unknown(path, []) == ["AUDIODIR", "MY_IMAGE"]
    assert environment.unknown(path, [own]) == ["AUDIODIR"]
    assert environment.unknown(tmp_path / "none", []) == []


def test_an_s3_of_its_own_is_written_completely_and_once(path):
    environment.ensure(path)
    assert "AWS_SECRET_ACCESS_KEY" not in environment.read(path)
    environment.ensure(path, profiles=["s3"])
    found = environment.read(path)
    assert found["AWS_SECRET_ACCESS_KEY"] == found["S3_SECRET_KEY"]
    assert found["COMPOSE_PROFILES"] == "s3"
    before = path.read_bytes()
    environment.ensure(path, profiles=["s3"])
    assert path.read_bytes() == before


def test_an_s3_that_is_set_already_is_not_overwritten(path):
    path.write_text("AWS_ENDPOINT_URL=https://s3.example.org\n")
    with pytest.raises(DeployError, match=r"AWS_ENDPOINT_URL in .* is already set"):
        environment.ensure(path, profiles=["s3"])
    assert path.read_text() == "AWS_ENDPOINT_URL=https://s3.example.org\n"


def test_an_s3_of_its_own_keeps_logs_in_the_bucket_that_the_file_names(path):
    path.write_text("S3_BUCKET=our-music\n")
    environment.ensure(path, profiles=["s3"])
    found = environment.read(path)
    assert found["AIRFLOW__LOGGING__REMOTE_BASE_LOG_FOLDER"] == "s3://our-music/logs"


def test_profiles_are_added_to_those_that_the_file_names(path):
    environment.ensure(path, profiles=["docker"])
    assert environment.read(path)["COMPOSE_PROFILES"] == "docker"
    environment.ensure(path, profiles=["s3", "docker"])
    assert environment.read(path)["COMPOSE_PROFILES"] == "docker,s3"
    before = path.read_bytes()
    environment.ensure(path, profiles=["s3"])
    environment.ensure(path)
    assert path.read_bytes() == before


def test_a_chosen_port_takes_the_place_of_the_files(path):
    path.write_text("# mine\nWEB_PORT=8080\n")
    environment.ensure(path, chosen={"WEB_PORT": "8081", "FLOWER_PORT": "5556"})
    assert path.read_text().startswith("# mine\nWEB_PORT=8081\n")
    assert environment.read(path)["FLOWER_PORT"] == "5556"


@pytest.mark.parametrize("lost", sorted(environment.BOUND_TO_DATA))
def test_a_lost_secret_of_a_database_is_not_made_anew(path, lost):
    environment.ensure(path)
    kept = [line for line in path.read_text().splitlines() if not line.startswith(f"{lost}=")]
    path.write_text("\n".join(kept) + "\n")
    before = path.read_bytes()
    with pytest.raises(DeployError, match=rf"lacks {lost}, .*restore .*docker volume rm"):
        environment.ensure(path, has_data=lambda: True)
    assert path.read_bytes() == before
    assert environment.ensure(path) == [lost]


def test_the_sizes_of_the_checks_are_the_compose_files():
    for name, size in env_checks.SIZES.items():
        assert f"${{{name}:-{size}}}" in COMPOSE
    assert set(env_checks.SIZES) == {
        *(name for name in environment.variables() if re.search("_(MEMORY|TMP|SHM)$", name))
    }


def test_settings_of_ones_own_reach_airflows_containers(path, tmp_path):
    own = tmp_path / "our settings.env"
    own.write_text("AIRFLOW__CORE__PARALLELISM=64\nAIRFLOW__CORE__LOAD_EXAMPLES=True\n")
    environment.ensure(path, chosen={"SETTINGS_FILE": f"'{own}'"})
    services = Project("any", path).services("*")
    for name in ("webserver", "scheduler", "dag-processor", "cpu-worker", "gpu-worker"):
        given = services[name]["environment"]
        assert given["AIRFLOW__CORE__PARALLELISM"] == "64"
        assert given["AIRFLOW__CORE__LOAD_EXAMPLES"] == "True"  # deploy/airflow.env says False


def test_the_shells_own_variables_do_not_go_before_the_files(path, monkeypatch, tmp_path):
    program = tmp_path / "docker"
    program.write_text("#!/bin/sh\nenv >>$(dirname $0)/seen\n")
    program.chmod(0o755)
    environment.ensure(path)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for name in ("AWS_SECRET_ACCESS_KEY", "TAG", "WEB_PORT", "COMPOSE_FILE", "JWT_SECRET"):
        monkeypatch.setenv(name, "from-the-shell")
    Project("any", path).compose("up")
    assert "from-the-shell" not in (tmp_path / "seen").read_text()


def test_gpus_get_their_fragment_and_memory_for_a_slot_each(path, monkeypatch, tmp_path):
    smi = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for n_gpus, memory in ((1, "8g"), (8, "32g")):
        lines = "".join(f"echo 'GPU {n}: NVIDIA H200 (UUID: GPU-{n})'\n" for n in range(n_gpus))
        smi.write_text(f"#!/bin/sh\n{lines}")
        smi.chmod(0o755)
        path.unlink(missing_ok=True)
        environment.ensure(path)
        found = environment.read(path)
        assert found["GPU_WORKER_MEMORY"] == memory
        assert found["COMPOSE_FILE"].endswith("gpu.yml")


def test_a_certificate_bundle_of_this_machine_is_taken_along(path, monkeypatch, tmp_path):
    bundle = tmp_path / "bundle.pem"
    bundle.write_text("certificates")
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    environment.ensure(path)
    assert environment.read(path)["CA_BUNDLE"] == str(bundle)


def test_the_example_names_every_variable_of_the_compose_files_and_no_other():
    of_git = (REPOSITORY / dags_git.FILE).read_text()
    used = set(re.findall(r"\$\{(\w+)", COMPOSE + of_git))
    used |= set(re.findall(r"^  (?:    )?([A-Z_0-9]+):$", COMPOSE, re.M))
    named = set(re.findall(r"^#? ?([A-Z_0-9]+)=", EXAMPLE, re.M))
    assert named - {"COMPOSE_FILE", "COMPOSE_PROFILES"} == used
    for name in named:
        assert re.search(
            rf"^# [A-Z].*\n(?:#.*\n)*(?:#? ?[A-Z_0-9]+=.*\n)*#? ?{name}=", EXAMPLE, re.M
        )


def test_every_secret_of_the_compose_file_is_required_with_its_remedy():
    for name in environment.SECRETS:
        assert f"${{{name}:?is not set; run `make env`}}" in COMPOSE
        assert not re.search(rf"\${{{name}:?-", COMPOSE)
