"""A fault of S3 gives one error line before any work; an interrupted push commits nothing."""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import ClientPayloadError
from botocore.exceptions import ClientError, ReadTimeoutError
from conftest import Run

from music_genre.errors import TemporaryError
from music_genre.versioning import git, s3, s3_filesystem
from tests.fakes.s3 import HANG_UP, ROLE, ROLE_TOKEN, SILENT, STOPPED, Store, serving

REPOSITORY = Path(__file__).resolve().parents[3]
SIDE_BY_SIDE = 4 * (os.cpu_count() or 1)
"""How many objects DVC sends at a time."""
KEY, SECRET, TOKEN = "AKIATESTKEY0000", "test+very/secret", "test-session-token"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """A fake S3 server; the environment makes this process use it."""
    for name in ("AWS_PROFILE", "AWS_CA_BUNDLE", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    with serving() as (address, store):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        yield store


@pytest.fixture
def publish(trained: Path, tmp_path: Path) -> list[str]:
    """The arguments that publish a run to the bucket `b`."""
    options = ["--git", tmp_path / "versions.git", "--remote", "s3://b/dvc"]
    options += ["--artifacts", tmp_path / "store"]
    return ["publish", "--run", *map(str, [trained, *options])]


def commits(tmp_path: Path) -> list[str]:
    folder = tmp_path / "versions.git"
    if not folder.exists():
        return []
    listed = ["git", "-C", str(folder), "rev-list", "--all"]
    return subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize(
    ("method", "status", "code", "exit_code", "words"),
    [
        ("GET", 404, "NoSuchBucket", 65, "there is no such bucket"),
        ("GET", 403, "InvalidAccessKeyId", 65, "does not know the access key"),
        ("GET", 403, "SignatureDoesNotMatch", 65, "the secret key does not belong to the"),
        ("GET", 400, "ExpiredToken", 65, "the session token has expired"),
        ("GET", 400, "InvalidToken", 65, "the session token is not valid"),
        ("GET", 403, "AccessDenied", 65, "s3://b/dvc: listing: the credentials lack permission"),
        ("PUT", 403, "AccessDenied", 65, "s3://b/dvc: writing: the credentials lack permission"),
        ("GET", 301, "PermanentRedirect", 65, "in another region"),
        ("GET", 403, "RequestTimeTooSkewed", 65, "clock"),
        ("GET", 503, "SlowDown", 75, "the service reports a problem"),
        ("GET", 418, "Teapot", 65, "refused with Teapot"),
    ],
)
def test_a_refusal_is_one_line_before_any_work(
    run: Run,
    store: Store,
    publish: list[str],
    tmp_path: Path,
    method: str,
    status: int,
    code: str,
    exit_code: int,
    words: str,
) -> None:
    store.refused[method] = (status, code)
    refused = run(*publish)
    assert refused.code == exit_code
    assert words in refused.error
    assert commits(tmp_path) == []
    assert not any("files" in key for key in store.objects)
    for secret in (KEY, SECRET, TOKEN):
        assert secret not in refused.stdout + refused.stderr


def test_every_remedy_has_a_code_that_services_answer() -> None:
    assert set(s3.SAME.values()) <= set(s3.REMEDIES)


def test_the_docs_list_every_refusal() -> None:
    """docs/versions.md must have the first words of each error line; they name the fault."""
    docs = (REPOSITORY / "docs" / "versions.md").read_text(encoding="utf-8")
    said = {text.partition(";")[0] for text in s3.REMEDIES.values()} | set(git.KNOWN.values())
    said |= {"no credentials were found", "does not answer", "the service reports a problem"}
    assert {words for words in said if words not in docs} == set()


def test_without_credentials(
    run: Run, store: Store, publish: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    refused = run(*publish)
    assert refused.code == 65
    assert "no credentials were found; set AWS_ACCESS_KEY_ID" in refused.error


def test_without_a_network(
    run: Run, store: Store, publish: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    refused = run(*publish)
    assert refused.code == 75
    assert "http://127.0.0.1:1 does not answer" in refused.error


def test_a_token_that_expires_during_the_push_commits_nothing_and_a_new_one_completes(
    run: Run, store: Store, publish: list[str], tmp_path: Path
) -> None:
    store.refused["PUT"], store.patience["PUT"] = (400, "ExpiredToken"), 1  # the probe
    refused = run(*publish)
    assert refused.code == 65
    assert "s3://b/dvc: dvc push: the session token has expired" in refused.error
    assert commits(tmp_path) == []
    store.refused.clear()
    done = run(*publish)
    assert done.code == 0, done.stderr
    assert len(commits(tmp_path)) == 2
    assert sum(key.startswith("/b/dvc/files/md5/") for key in store.objects) == 2


@pytest.mark.parametrize(("method", "served"), [("HEAD", 0), ("GET", 2)])
def test_an_s3_that_hangs_up_after_the_probe_is_one_line(
    run: Run, store: Store, publish: list[str], tmp_path: Path, method: str, served: int
) -> None:
    store.refused[method], store.patience[method] = HANG_UP, served
    refused = run(*publish)
    assert refused.code == 75, refused.stderr
    assert "does not answer" in refused.error
    assert commits(tmp_path) == []


@pytest.mark.parametrize(
    ("fault", "n_files", "n_bytes"),
    [(SILENT, 20 * SIDE_BY_SIDE, 0), (STOPPED, 2, 16 << 20)],  # 16 MiB: more than a socket buffers
    ids=["silent", "stopped"],
)
def test_a_push_to_an_s3_that_falls_silent_ends_and_asks_little_more(
    run: Run,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: tuple[int, str],
    n_files: int,
    n_bytes: int,
) -> None:
    if fault == STOPPED and not hasattr(socket, "TCP_USER_TIMEOUT"):
        pytest.skip("only Linux has TCP_USER_TIMEOUT")
    monkeypatch.setattr(s3_filesystem, "SECONDS", 1 if fault == STOPPED else 0.3)
    (tmp_path / "data" / "genre").mkdir(parents=True)
    for number in range(n_files):
        data = bytes(n_bytes) + str(number).encode()
        (tmp_path / "data" / "genre" / str(number)).write_bytes(data)
    store.refused["PUT"], store.patience["PUT"] = fault, 1  # the probe
    options = ["--git", tmp_path / "versions.git", "--remote", "s3://b/dvc", "--artifacts"]
    words = ["publish", "--data", tmp_path / "data", "--name", "set", *options, tmp_path / "store"]
    silent = run(*words)
    assert silent.code == 75, silent.stderr
    assert "s3://b/dvc: dvc push: " in silent.error
    assert "does not answer" in silent.error
    assert commits(tmp_path) == []
    assert -store.patience["PUT"] <= 10 * min(n_files, SIDE_BY_SIDE)
    store.refused.clear()
    monkeypatch.setattr(s3_filesystem, "SECONDS", 20)
    done = run(*words)
    assert done.code == 0, done.stderr
    assert sum(key.startswith("/b/dvc/files/md5/") for key in store.objects) == n_files + 1


def caused(error: BaseException, by: BaseException) -> BaseException:
    error.__cause__ = by
    return error


TIMED_OUT = ReadTimeoutError(endpoint_url="http://s3")
TOO_SLOW = ClientError({"Error": {"Code": "RequestTimeout"}}, "PutObject")


@pytest.mark.parametrize(
    ("error", "silent"),
    [
        (caused(OSError(), by=TIMED_OUT), True),
        (ClientPayloadError("it broke off"), True),
        (caused(TimeoutError(), by=TOO_SLOW), False),  # s3fs raises this
        (FileNotFoundError(), False),
    ],
    ids=["no answer", "broken off", "answer of a time-out", "not there"],
)
def test_an_answer_is_no_silence(error: BaseException, silent: bool) -> None:
    assert s3.is_silence(error) == silent


def test_an_answer_that_broke_off_is_worth_another_try() -> None:
    broken = ClientPayloadError("it broke off")
    assert isinstance(broken, s3.ERRORS)  # so the program prints it as an error line
    assert isinstance(s3.in_words("s3://b/dvc: dvc pull", broken), TemporaryError)


def test_errors_that_cause_each_other_are_put_into_words() -> None:
    first, second = ReadTimeoutError(endpoint_url="http://s3"), OSError()
    circle = caused(first, by=caused(second, by=first))
    assert "does not answer" in str(s3.in_words("s3://b/dvc: dvc push", circle))


def test_the_profile_of_the_repository_opens_it() -> None:
    session = s3_filesystem.S3FileSystem(profile="team").fs_args["session"]
    assert session.profile == "team"


def test_nothing_secret_is_written_anywhere(
    run: Run, store: Store, publish: list[str], tmp_path: Path
) -> None:
    done = run(*publish)
    assert done.code == 0, done.stderr
    shown = ["git", "-C", str(tmp_path / "versions.git"), "log", "--all", "--patch"]
    history = subprocess.run(shown, check=True, capture_output=True, text=True).stdout
    assert "s3://b/dvc" in history
    for secret in (KEY, SECRET, TOKEN):
        assert secret not in history
        for file in (path for path in tmp_path.rglob("*") if path.is_file()):
            assert secret.encode() not in file.read_bytes(), file
    assert not any(each.encode() in b"".join(store.objects.values()) for each in (SECRET, TOKEN))
    assert store.tokens == {TOKEN}  # every request had the token


def test_a_role_of_the_machine_opens_it(
    run: Run, store: Store, publish: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an EC2 instance or in an ECS task, a local service hands out the credentials."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    address = f"{os.environ['AWS_ENDPOINT_URL']}{ROLE}"
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", address)
    done = run(*publish)
    assert done.code == 0, done.stderr
    assert store.tokens == {ROLE_TOKEN}


def test_a_key_that_may_only_read_pulls(
    run: Run, store: Store, music: Path, tmp_path: Path
) -> None:
    options = ["--git", tmp_path / "versions.git", "--remote", "s3://b/dvc", "--artifacts"]
    published = run("publish", "--data", music, "--name", "set", *options, tmp_path / "store")
    assert published.code == 0, published.stderr
    store.refused["PUT"] = (403, "AccessDenied")
    pulled = run("pull", "--data", "dvc:set/music", *options, tmp_path / "elsewhere")
    assert pulled.code == 0, pulled.stderr
    assert len(list(Path(pulled.result["audio"]).rglob("*.wav"))) == 15
