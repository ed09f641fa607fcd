"""docker-compose.yml and the running containers match the table of components."""

import json
import re
import subprocess
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Sequence
from urllib.parse import urlsplit

import pytest
from conftest import REPOSITORY, inside, inspect

from deploy.components import SERVERS, components
from deploy.containers import dags_git, environment
from deploy.containers.stack import Project
from fleet.contract import queues

pytestmark = pytest.mark.timeout(900)  # the first test starts the stack
TABLE = components()
SERVICES = sorted(TABLE)
LASTING = sorted(name for name, each in TABLE.items() if each.is_lasting and not each.profile)


WITH_S3 = {"webserver", "triggerer", "cpu-worker", "gpu-worker"}
"""Services that know S3's key if the stack has its own S3, as here; see docs/least-privilege.md."""


def known_to(service: str) -> set[str]:
    """The secrets that a running container may know."""
    return TABLE[service].secrets | ({"S3_SECRET_KEY"} if service in WITH_S3 else set())


@pytest.fixture(scope="module")
def rendered(plain) -> dict:
    return plain.services("*")


def secrets_in(text: str, project) -> set[str]:
    values = environment.read(project.env_file)
    return {name for name in environment.SECRETS if values[name] in text}


def test_the_file_has_the_services_of_the_table(rendered):
    assert sorted(set(rendered) - {"music-genre-classif"}) == SERVICES


@pytest.mark.parametrize("service", SERVICES)
def test_each_service_is_given_what_is_in_its_row_and_no_more(rendered, plain, service):
    row, given = TABLE[service], rendered[service]
    assert secrets_in(json.dumps(given), plain) == row.secrets
    assert set(given["networks"]) == row.networks
    sources = [each["source"] for each in given.get("volumes", [])]
    mounts = {source.removeprefix(f"{REPOSITORY}/") for source in sources}
    of_the_house = ("deploy/compose/", "deploy/redis-users.sh", "deploy/queues.toml")
    assert {mount for mount in mounts if not mount.startswith(of_the_house)} == row.volumes
    ports = given.get("ports", [])
    assert [(port["host_ip"], port["target"]) for port in ports] == (
        [("127.0.0.1", row.port)] if row.port else []
    )
    assert given.get("profiles", []) == ([row.profile] if row.profile else [])
    unit = {"m": 2**20, "g": 2**30}[row.memory[-1]]
    assert int(given["mem_limit"]) == int(row.memory[:-1]) * unit


@pytest.mark.parametrize("service", SERVICES)
def test_each_service_runs_what_its_row_says(rendered, service):
    row, given = TABLE[service], rendered[service]
    if row.command:
        assert given["command"] == in_a_container(row.command, row.port)
    if row.health:
        assert given["healthcheck"]["test"] == ["CMD", *in_a_container(row.health, row.port)]
    else:
        assert ("healthcheck" in given) == (row.rank == SERVERS and not row.profile)
    own = {name: given.get("environment", {}).get(name) for name in row.settings}
    assert own == row.settings


def test_dags_from_git_give_a_way_out_and_credentials_to_the_dag_processor_alone(
    rendered, plain, tmp_path
):
    env_file = tmp_path / ".env"
    files = f"COMPOSE_FILE=docker-compose.yml:{dags_git.FILE}"
    lines = f"{files}\nDAGS_GIT=https://host/dags.git\nDAGS_GIT_KEY_FILE=/a/key\n"
    env_file.write_text(plain.env_file.read_text() + lines)
    given = Project("with-git", env_file).services("*")
    own = given.pop("dag-processor")
    assert given == {name: its for name, its in rendered.items() if name != "dag-processor"}
    assert set(own["networks"]) == {"control", "outside"}
    names = {each["source"].removeprefix("dags-git-") for each in own["secrets"]}
    assert names == {"credentials", "key", "known-hosts"}
    assert own["environment"]["FLEET_DAGS_GIT"] == "https://host/dags.git"
    assert own["volumes"] == rendered["dag-processor"]["volumes"]


def in_a_container(words: Sequence[str], port: int) -> list[str]:
    return [word.format(host="0.0.0.0", port=port) for word in words]


@pytest.mark.parametrize("service", SERVICES)
def test_each_service_is_confined(rendered, service):
    given = rendered[service]
    assert given["cap_drop"] == ["ALL"]
    assert given["security_opt"] == ["no-new-privileges:true"]
    if service == "s3":
        assert given["cap_add"] == ["CHOWN", "DAC_OVERRIDE", "SETGID", "SETUID"]
    else:
        assert "cap_add" not in given
        assert given["read_only"] is True
    assert int(given["mem_limit"]) > 0
    assert given["logging"]["options"] == {"max-file": "3", "max-size": "10m"}
    assert given["stop_grace_period"] == "1m0s"


@pytest.mark.parametrize("name", environment.SECRETS)
def test_compose_refuses_to_start_without_a_secret_and_names_the_remedy(plain, name, tmp_path):
    lines = plain.env_file.read_text().splitlines()
    for value in ([], [f"{name}="]):
        (tmp_path / ".env").write_text(
            "\n".join([line for line in lines if not line.startswith(f"{name}=")] + value)
        )
        words = ["docker", "compose", "--env-file", str(tmp_path / ".env"), "config", "-q"]
        ended = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
        assert ended.returncode != 0
        assert name in ended.stderr
        assert "make env" in ended.stderr


@pytest.mark.parametrize("service", LASTING)
def test_a_running_container_is_confined(stack, service):
    host = inspect(service)["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert host["ReadonlyRootfs"]
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert host["Memory"] > 0
    assert not host["Privileged"]
    assert inside(service, "id", "-u").stdout.strip() != "0"
    assert inside(service, "touch", "/new").returncode != 0
    assert "Read-only" in inside(service, "touch", "/new").stderr


@pytest.mark.parametrize("service", LASTING)
def test_no_process_of_a_container_knows_more_than_its_row(stack, service, project):
    assert secrets_in(json.dumps(inspect(service)["Config"]), project) == known_to(service)
    environments = inside(service, "sh", "-c", "cat /proc/[0-9]*/environ").stdout
    assert "PATH=" in environments
    assert secrets_in(environments, project) == known_to(service)
    commands = inside(service, "sh", "-c", "cat /proc/[0-9]*/cmdline").stdout
    assert commands.strip()
    assert secrets_in(commands, project) == set()


def test_two_loopback_ports_and_no_other(stack):
    published = []
    for service in LASTING:
        for bindings in (inspect(service)["NetworkSettings"]["Ports"] or {}).values():
            published += [(each["HostIp"], each["HostPort"]) for each in bindings or []]
    ports = {str(urlsplit(each).port) for each in (stack.web_address, stack.flower_address)}
    assert sorted(published) == sorted(("127.0.0.1", port) for port in ports)


CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)"


@pytest.mark.parametrize("service", ["cpu-worker", "gpu-worker", "flower"])
def test_postgres_is_out_of_a_workers_reach(stack, service):
    networks = inspect("postgres")["NetworkSettings"]["Networks"]
    for host in ("postgres", *(each["IPAddress"] for each in networks.values())):
        assert inside(service, "python", "-c", CONNECT, host, "5432").returncode != 0, host
    assert inside(service, "python", "-c", CONNECT, "redis", "6379").returncode == 0


# One process runs all commands: starting Python for each of them took a minute.
REDIS = """
import json, os, sys, redis
client, refused = redis.from_url(os.environ["AIRFLOW__CELERY__BROKER_URL"]), {}
for command in sys.argv[1:]:
    try:
        client.execute_command(*command.split())
        refused[command] = False
    except redis.exceptions.NoPermissionError:
        refused[command] = True
print(json.dumps(refused))
"""
FORBIDDEN = ["FLUSHALL", "CONFIG GET *", "KEYS *", "ACL LIST", "SHUTDOWN", "SET foo 1", "MONITOR"]
FORBIDDEN += ["CLIENT LIST", "BGREWRITEAOF", "REPLICAOF localhost 1", "MODULE LIST", "GET secret"]


def allowed_by_redis(service: str, *commands: str) -> set[str]:
    """The commands that Redis allows to the user of this service."""
    ended = inside(service, "python", "-c", REDIS, *commands)
    assert ended.returncode == 0, ended.stderr
    return {command for command, is_refused in json.loads(ended.stdout).items() if not is_refused}


@pytest.mark.parametrize("service", ["scheduler", "cpu-worker", "gpu-worker", "flower"])
def test_redis_refuses_what_a_user_has_no_business_with(stack, service):
    assert allowed_by_redis(service, *FORBIDDEN, "PING") == {"PING"}


BINDINGS = [f"_kombu.binding.{queue}" for queue in queues()]
BINDINGS += [f"_kombu.binding_permanent.{queue}" for queue in queues()]
OF_OTHERS = [
    "LPUSH gpu x",
    "LRANGE gpu 0 -1",
    "LINDEX gpu 0",
    "SORT gpu",
    "LPUSH celery@any.celery.pidbox x",
    "HGETALL unacked",
    "SCAN 0",
]
OF_OTHERS += [f"SADD {binding} evil" for binding in BINDINGS]
OF_OTHERS += ["SUBSCRIBE celery-task-meta-1", "PUBLISH /1.celery.pidbox x", "FUNCTION LIST"]


def test_flower_may_look_and_not_send(stack):
    assert allowed_by_redis("flower", *OF_OTHERS, "LLEN gpu") == {"LLEN gpu"}


def test_a_worker_refuses_orders_against_its_contract(stack, project):
    password = environment.read(project.env_file)["FLOWER_PASSWORD"]
    login = "Basic " + b64encode(f"admin:{password}".encode()).decode()
    (worker,) = (name for name in stack.online_workers() if name.startswith("gpu@"))
    assert status_of(f"{stack.flower_address}/api/workers?refresh=1", "GET", login) == 200
    for order in ("pool/grow", "pool/shrink", "queue/add-consumer"):
        address = f"{stack.flower_address}/api/worker/{order}/{worker}?n=1&queue=cpu"
        assert status_of(address, "POST", login) == 403, order


def test_nobody_speaks_to_redis_without_a_login(stack):
    answer = inside("redis", "redis-cli", "ping").stdout
    assert "NOAUTH" in answer
    wrong = inside("redis", "redis-cli", "--user", "worker", "--pass", "wrong", "llen", "gpu")
    assert "WRONGPASS" in wrong.stdout + wrong.stderr


class Staying(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *words):
        return None


def status_of(address: str, method: str = "GET", login: str = "") -> int:
    headers = {"Content-Type": "application/json"}
    if login:
        headers["Authorization"] = login
    body = b"{}" if method in ("POST", "PUT", "PATCH") else None
    request = urllib.request.Request(address, data=body, headers=headers, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), Staying)
    try:
        with opener.open(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def location_of(address: str) -> str:
    """The address to which a request without a login is redirected; empty without a redirect."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), Staying)
    try:
        with opener.open(address, timeout=20):
            return ""
    except urllib.error.HTTPError as error:
        return error.headers.get("Location", "")


PUBLIC = {
    *("/api/v2/version", "/api/v2/monitor/health"),
    *("/execution/changelog", "/execution/health", "/execution/health/ping"),
    "/auth/login/",
}
"""What Airflow serves without a login: versions, health, and the login form."""
PAGE = (REPOSITORY / "docs" / "least-privilege.md").read_text()
TO_THE_LOGIN = {"/api/v2/auth/login", "/api/v2/auth/logout", "/auth/logout"}
"""Addresses that redirect everybody to the login form."""
PAGES = "/auth/(?!fab/)"
"""The pages of users and roles. Without a login they redirect to the login form. A form that is
posted without its token is refused with 400, and invalid input with 422, before any other check."""
WRONG_LOGINS = ["", "Bearer wrong", "Basic " + b64encode(b"admin:no").decode()]


@pytest.fixture(scope="module")
def routes(stack) -> list[tuple[str, str]]:
    """(method, path) of every route of the API, of the UI, of the tasks' API and of the login."""
    program = (REPOSITORY / "tests" / "stack" / "routes.py").read_text()
    answer = inside("webserver", "python", "-W", "ignore", "-c", program)
    found = json.loads(answer.stdout.splitlines()[-1])
    for part in ("/api/v2/", "/ui/", "/execution/", "/auth/fab/", "/auth/users/"):
        assert [path for _, path in found if path.startswith(part)], part
    return [(method, re.sub(r"[{<][^}>]*[}>]", "1", path)) for method, path in found]


def test_the_page_names_what_needs_no_login():
    assert {path for path in PUBLIC if f"`{path}`" not in PAGE} == set()


def test_addresses_of_the_pages_exist(stack):
    """Flower's addresses are left out: they have a test of their own."""
    texts = [PAGE, (REPOSITORY / "docs" / "settings.md").read_text()]
    named = {path for text in texts for path in re.findall(r"`(/[a-z0-9/_.-]+)`", text)}
    named -= {"/metrics", "/tmp"}
    of_airflow = {path for path in named if not path.startswith("/var/")}
    assert len(of_airflow) >= 8
    found = {path: status_of(stack.web_address + path) for path in of_airflow - {"/api/v2/"}}
    assert {path for path, status in found.items() if status == 404} == set()


@pytest.mark.parametrize("login", WRONG_LOGINS)
def test_every_route_of_airflow_wants_a_login(stack, routes, login):
    answers = {
        (method, path): status_of(stack.web_address + path, method, login)
        for method, path in routes
    }
    allowed = {
        key: (200,) if key[1] in PUBLIC else (307,)
        for key in answers
        if key[0] == "GET" and key[1] in PUBLIC | TO_THE_LOGIN
    }
    for key in answers.keys() - allowed.keys():
        allowed[key] = (302, 400, 401, 404, 422) if re.match(PAGES, key[1]) else (401, 403)
    assert {key: status for key, status in answers.items() if status not in allowed[key]} == {}


def test_a_page_that_leads_elsewhere_leads_to_the_login_or_home(stack, routes):
    led = {
        path: location_of(stack.web_address + path)
        for method, path in routes
        if method == "GET" and re.match(PAGES, path)
    }
    places = {re.sub(r"[?#].*", "", place) for place in led.values() if place}
    base = urlsplit(stack.web_address).path
    home = {stack.web_address, "/auth/", f"{base}/auth/"}
    login = {f"{place}/auth/login/" for place in ("", base, stack.web_address)}
    assert places <= login | home
    assert len(places) > 1


def test_a_wrong_password_gets_no_token(stack):
    body = json.dumps({"username": "admin", "password": "wrong"}).encode()
    request = urllib.request.Request(
        f"{stack.web_address}/auth/token", body, {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=20)
    with refused.value as error:
        assert error.code in (401, 403)


def flower_routes() -> list[str]:
    code = (
        "import json; from flower.urls import handlers; print(json.dumps("
        "[h[0] if isinstance(h, tuple) else h.regex.pattern for h in handlers]))"
    )
    patterns = json.loads(inside("flower", "python", "-c", code).stdout)
    return [
        re.sub(r"\(.*?\)", "1", pattern).strip("$").replace("/?", "").replace(".*", "/x")
        for pattern in patterns
    ]


@pytest.mark.parametrize("login", WRONG_LOGINS)
def test_every_route_of_flower_wants_the_login(stack, login):
    routes = flower_routes()
    assert {"/metrics", "/healthcheck", "/static/1", "/api/workers"} <= set(routes)
    for route in routes:
        for method in ("GET", "POST", "OPTIONS"):
            assert status_of(stack.flower_address + route, method, login) == 401, route


def test_flower_answers_who_has_the_login(stack, project):
    password = environment.read(project.env_file)["FLOWER_PASSWORD"]
    login = "Basic " + b64encode(f"admin:{password}".encode()).decode()
    for route in ("/", "/api/workers", "/metrics", "/static/css/flower.css"):
        assert status_of(stack.flower_address + route, "GET", login) == 200


def test_the_image_for_preprocessing_has_no_torch_and_the_control_planes_no_ml(stack):
    assert inside("cpu-worker", "/opt/ml/bin/python", "-c", "import torch").returncode != 0
    assert inside("cpu-worker", "/opt/ml/bin/python", "-c", "import soundfile").returncode == 0
    for program in ("/opt/ml/bin/python", "gcc", "uv"):
        assert inside("webserver", "which", program).returncode != 0


def test_no_secret_is_in_an_image(stack, project):
    for name in ("airflow", "cpu-worker", "gpu-worker"):
        words = ["docker", "history", "--no-trunc", f"music-genre/{name}:test"]
        assert secrets_in(subprocess.check_output(words, text=True), project) == set()
        words = ["docker", "image", "inspect", f"music-genre/{name}:test"]
        assert secrets_in(subprocess.check_output(words, text=True), project) == set()
