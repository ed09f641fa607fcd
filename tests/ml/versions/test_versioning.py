"""Publishing and pulling: the remote has every committed object, even after interruptions."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import Outcome, Prepared, Run, write_music

from tests.fakes import git_server

NEEDS_SSH = pytest.mark.skipif(
    shutil.which("ssh") is None, reason="no SSH client is installed; apt-get install openssh-client"
)
REPOSITORY = Path(__file__).resolve().parents[3]


class Versions(NamedTuple):
    """The repository, the remote and the artifact folder of one test."""

    git: Path
    remote: Path
    store: Path

    @property
    def options(self) -> list[str]:
        listed = {"--git": self.git, "--remote": self.remote, "--artifacts": self.store}
        return [str(word) for pair in listed.items() for word in pair]

    def commits(self) -> list[str]:
        return self.ask("rev-list", "--all").split()

    def ask(self, *words: str) -> str:
        command = ["git", "-C", str(self.git), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    return Versions(tmp_path / "versions.git", tmp_path / "remote", tmp_path / "store")


def assert_whole(versions: Versions) -> int:
    """Assert that every object of every commit is on the remote; returns the number of commits."""
    if not versions.git.exists():
        return 0
    for commit in versions.commits():
        for name in versions.ask("ls-tree", "-r", "--name-only", commit).splitlines():
            if name.endswith(".dvc"):
                text = versions.ask("show", f"{commit}:{name}")
                for key in re.findall(r"md5: (\S+)", text):
                    _assert_object(versions.remote, key)
    return len(versions.commits())


def _assert_object(remote: Path, key: str) -> None:
    contents = (remote / "files" / "md5" / key[:2] / key[2:]).read_bytes()
    assert hashlib.md5(contents).hexdigest() == key.partition(".")[0]
    if key.endswith(".dir"):
        for each in json.loads(contents):
            _assert_object(remote, each["md5"])


@pytest.fixture
def copies(trained: Path, tmp_path: Path) -> list[Path]:
    """Four copies of one run, with different seeds in their settings."""
    runs = []
    for seed in range(4):
        run = tmp_path / "runs" / f"run{seed}"
        shutil.copytree(trained, run)
        settings = json.loads((run / "settings.json").read_text())
        settings["config"]["seed"] = seed
        settings["split"] = str((trained / settings["split"]).resolve())
        (run / "settings.json").write_text(json.dumps(settings))
        runs.append(run)
    return runs


def start(*words: str | Path, driver: str = "") -> subprocess.Popen[str]:
    code = driver or "from music_genre.__main__ import main; main()"
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> Outcome:
    stdout, stderr = process.communicate(timeout=120)
    return Outcome(process.returncode, stdout, stderr)


def test_a_clone_elsewhere_predicts_the_same(
    run: Run, trained: Path, prepared: Prepared, versions: Versions, tmp_path: Path
) -> None:
    origin = ["--airflow-run", "dag/run 1", "--data-version", "dvc:x@abc"]
    done = run("publish", "--run", trained, *origin, *versions.options)
    assert done.code == 0, done.stderr
    clone = tmp_path / "elsewhere"
    subprocess.run(["git", "clone", "-q", versions.git, clone], check=True)
    dvc = [sys.executable, "-m", "dvc", "pull", "-q", "-R", done.result["path"]]
    subprocess.run(dvc, cwd=clone, check=True)
    music = prepared.audio / "bass"
    there = run("predict", "--json", "--run", clone / done.result["path"], "--device=cpu", music)
    here = run("predict", "--json", "--run", trained, "--device=cpu", music)
    assert there.stdout == here.stdout != ""
    settings = json.loads((trained / "settings.json").read_text())
    message = versions.ask("log", "-1", "--format=%B")
    for line in (
        f"Data-Hash: {settings['data_key']}",
        f"Split-Hash: {settings['split_key']}",
        "Airflow-Run: dag/run 1",
        "Data-Version: dvc:x@abc",
    ):
        assert line in message.splitlines()
    assert re.search(r"^Code-Version: \d+\.\d+\.\d+\+[0-9a-f]{12}$", message, re.M)
    assert done.result["tag"] in versions.ask("tag", "--points-at", "main").split()
    assert versions.ask("show", f"main:{done.result['path']}/metrics.json")
    config = versions.ask("show", "main:.dvc/config")
    assert str(versions.remote) in config


def test_the_same_bytes_make_no_commit(run: Run, trained: Path, versions: Versions) -> None:
    first = run("publish", "--run", trained, *versions.options)
    again = run("publish", "--run", trained, "--airflow-run", "another", *versions.options)
    assert (first.result["reused"], again.result["reused"]) == (False, True)
    assert again.result["commit"] == first.result["commit"]
    assert len(versions.commits()) == 2  # DVC's first commit and the model's commit
    assert list((versions.store / "versions" / "clones").iterdir()) == []


def test_a_published_run_stays_as_it_is(run: Run, trained: Path, versions: Versions) -> None:
    before = {path: path.stat().st_mode for path in trained.rglob("*")}
    assert run("publish", "--run", trained, *versions.options).code == 0
    assert {path: path.stat().st_mode for path in trained.rglob("*")} == before
    checkpoint = next(trained.glob("checkpoint-*.pt"))
    assert checkpoint.stat().st_nlink == 1  # DVC's cache has a copy, not a hard link


def test_four_that_publish_at_once_lose_nothing(copies: list[Path], versions: Versions) -> None:
    started = [start("publish", "--run", each, *versions.options) for each in copies]
    ended = [finish(process) for process in started]
    assert [each.code for each in ended] == [0, 0, 0, 0], [each.stderr for each in ended]
    assert assert_whole(versions) == 5
    history = versions.ask("log", "--format=%P", "main").splitlines()
    assert all(" " not in parents for parents in history)  # the history is linear
    assert len(history) == 5
    assert len(versions.ask("ls-tree", "--name-only", "main", "models/").split()) == 4
    assert len(versions.ask("tag").split()) == 4


KILLED = """
import os, sys
from music_genre.__main__ import main
from music_genre.versioning import clone, storage
step = sys.argv.pop(1)
place = storage if hasattr(storage, step) else clone.Clone
real = getattr(place, step)
def killed(*arguments, **options):
    real(*arguments, **options)
    os.kill(os.getpid(), 9)
setattr(place, step, killed)
main()
"""


def test_a_try_that_was_killed_before_it_could_say_so_has_published(
    run: Run, trained: Path, versions: Versions
) -> None:
    """A later try of the same Airflow run reports the new tag; another Airflow run does not."""
    command = ["publish", "--run", trained, *versions.options, "--airflow-run"]
    assert finish(start("_push", *command, "dag/first", driver=KILLED)).code == -signal.SIGKILL
    again, later = run(*command, "dag/first"), run(*command, "dag/second")
    assert again.result["reused"] is False
    assert again.result["tag"] == versions.ask("tag").strip()
    assert later.result["reused"] is True
    assert assert_whole(versions) == 2


@pytest.mark.parametrize("date", ["", "2026-01-01T00:00:00Z"])
def test_the_same_run_published_twice_at_once_is_one_commit(
    trained: Path,
    copies: list[Path],
    run: Run,
    versions: Versions,
    monkeypatch: pytest.MonkeyPatch,
    date: str,
) -> None:
    """Also within one second, when all publishers create identical commits, only one publishes."""
    if date:
        monkeypatch.setenv("GIT_AUTHOR_DATE", date)
        monkeypatch.setenv("GIT_COMMITTER_DATE", date)
    run("publish", "--run", copies[0], *versions.options)
    started = [start("publish", "--run", trained, *versions.options) for _ in range(3)]
    ended = [finish(process) for process in started]
    assert [each.code for each in ended] == [0, 0, 0], [each.stderr for each in ended]
    assert sum(not each.result["reused"] for each in ended) == 1
    assert len(versions.ask("tag").split()) == 2
    assert assert_whole(versions) == 3


OF_A_SOAK = [
    pytest.param(step, marks=pytest.mark.soak) for step in ("probe", "add", "verify", "_rebase")
]


@pytest.mark.parametrize("step", ["push", "commit", "_push", *OF_A_SOAK])
def test_killed_between_steps_it_is_completed_by_the_same_command(
    run: Run, trained: Path, copies: list[Path], versions: Versions, step: str
) -> None:
    assert run("publish", "--run", trained, *versions.options).code == 0
    command = ["publish", "--run", copies[2], *versions.options]
    assert finish(start(step, *command, driver=KILLED)).code == -signal.SIGKILL
    is_there = step == "_push"
    assert assert_whole(versions) == 2 + is_there
    done = run(*command)
    assert done.code == 0, done.stderr
    assert done.result["reused"] is is_there
    assert assert_whole(versions) == 3
    assert list((versions.store / "versions" / "clones").iterdir()) == []


@pytest.mark.parametrize("times", [2, pytest.param(40, marks=pytest.mark.soak)])
def test_a_publication_killed_at_any_moment_records_no_data_that_the_remote_lacks(
    run: Run,
    trained: Path,
    versions: Versions,
    tmp_path: Path,
    times: int,
    figures: dict[str, str],
) -> None:
    began = time.monotonic()
    assert finish(start("publish", "--run", trained, *versions.options)).code == 0
    seconds = time.monotonic() - began
    for number in range(times):
        anew = Versions(*(tmp_path / str(number) / name for name in ("git", "remote", "store")))
        process = start("publish", "--run", trained, *anew.options)
        time.sleep(seconds * (number + 0.5) / times)
        process.kill()
        process.communicate()
        assert_whole(anew)
        assert run("publish", "--run", trained, *anew.options).code == 0
        assert assert_whole(anew) == 2
    figures["a publication killed"] = f"at {times} moments, spread over its {seconds:.1f} s"


def test_an_object_that_is_cut_short_on_the_remote_is_sent_again(
    run: Run, trained: Path, versions: Versions
) -> None:
    run("publish", "--run", trained, *versions.options)
    largest = max((versions.remote / "files").rglob("*"), key=lambda path: path.stat().st_size)
    largest.chmod(0o644)
    os.truncate(largest, 100)
    assert run("publish", "--run", trained, *versions.options).code == 0
    assert_whole(versions)


def test_a_repository_that_refuses_is_named_and_the_retry_completes(
    run: Run, trained: Path, copies: list[Path], versions: Versions
) -> None:
    run("publish", "--run", trained, *versions.options)
    hook = versions.git / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho not on Fridays >&2\nexit 1\n")
    hook.chmod(0o755)
    refused = run("publish", "--run", copies[1], *versions.options)
    assert refused.code == 65
    assert f"{versions.git}: git push: the repository's own rules refuse" in refused.error
    assert len(versions.commits()) == 2
    hook.unlink()
    assert run("publish", "--run", copies[1], *versions.options).result["reused"] is False
    assert assert_whole(versions) == 3


@pytest.mark.parametrize("place", ["remote", "store", "git"])
def test_a_full_disk_leaves_all_as_it_was_and_the_retry_completes(
    run: Run, trained: Path, versions: Versions, place: str
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    small = getattr(versions, place)
    small.mkdir()
    if place == "git":
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", small], check=True)
        whole = shutil.copytree(small, small.with_name("whole"))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", small])
    if mounted.returncode:
        pytest.skip("this container may not mount a small disk")
    try:
        if place == "git":
            shutil.copytree(whole, small, dirs_exist_ok=True)
            subprocess.run(["dd", "if=/dev/zero", f"of={small / 'filler'}"], capture_output=True)
        failed = run("publish", "--run", trained, *versions.options)
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)
    assert failed.code == 75, failed.stderr
    assert "o space left on device" in failed.error
    assert versions.commits() == []
    assert run("publish", "--run", trained, *versions.options).code == 0
    assert_whole(versions)


def test_a_repository_behind_a_token(
    run: Run, trained: Path, versions: Versions, tmp_path: Path
) -> None:
    subprocess.run(["git", "init", "-q", "--bare", tmp_path / "hosted.git"], check=True)
    credentials = tmp_path / "credentials"
    seen: list[str] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            for number in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208
                with contextlib.suppress(OSError):  # the process has just ended
                    words = Path("/proc", number, "cmdline").read_bytes()
                    seen.append(words.decode(errors="replace"))

    with git_server.serving(tmp_path, "someone:t0psecret") as address:
        host = address.removeprefix("http://")
        options = [*versions.options, "--git", f"{address}/hosted.git"]
        options += ["--git-credentials", str(credentials)]
        credentials.write_text(f"http://someone:wrong@{host}\n")
        refused = run("publish", "--run", trained, *options)
        assert refused.code == 65
        assert "the user or token is refused" in refused.error
        credentials.write_text(f"http://someone:t0psecret@{host}\n")
        with ThreadPoolExecutor(1) as threads:
            watched = threads.submit(watch)
            try:
                done = run("publish", "--run", trained, *options)
            finally:
                over.set()
            watched.result()
    assert done.code == 0, done.stderr
    assert any("git\0" in words and "\0push\0" in words for words in seen)
    assert not any("t0psecret" in words for words in seen)
    assert "t0psecret" not in done.stdout + done.stderr + refused.stderr
    for file in (path for path in tmp_path.rglob("*") if path.is_file() and path != credentials):
        assert b"t0psecret" not in file.read_bytes(), file


def test_a_token_that_may_only_read_is_named_before_any_work(
    run: Run, trained: Path, versions: Versions, tmp_path: Path
) -> None:
    subprocess.run(["git", "init", "-q", "--bare", tmp_path / "hosted.git"], check=True)
    credentials = tmp_path / "credentials"
    with git_server.serving(tmp_path, "someone:token", read_only=True) as address:
        credentials.write_text(f"http://someone:token@{address.removeprefix('http://')}\n")
        options = ["--git", f"{address}/hosted.git", "--git-credentials", str(credentials)]
        refused = run("publish", "--run", trained, *versions.options, *options)
    assert refused.code == 65
    assert "the token lacks permission" in refused.error
    assert not (versions.remote / "files").exists()


@pytest.mark.parametrize(
    ("git", "code", "words"),
    [
        ("http://127.0.0.1:1/x.git", 75, "cannot be reached"),
        ("http://no-such-host.invalid/x.git", 75, "cannot be reached"),
        ("https://someone:secret@host/x.git", 65, "contains a user name, password or token"),
        ("https://secret@host/x.git", 65, "contains a user name, password or token"),
        pytest.param("ssh://127.0.0.1:1/x.git", 75, "cannot be reached", marks=NEEDS_SSH),
    ],
)
def test_a_wrong_repository_is_one_line(
    run: Run, trained: Path, versions: Versions, git: str, code: int, words: str
) -> None:
    refused = run("publish", "--run", trained, *versions.options, "--git", git)
    assert refused.code == code
    assert words in refused.error
    assert "secret@" not in refused.error


def test_a_repository_goes_on_with_the_remote_that_it_has(
    run: Run,
    copies: list[Path],
    versions: Versions,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run("publish", "--run", copies[0], *versions.options)
    other = tmp_path / "other"
    done = run("publish", "--run", copies[1], *versions.options, "--remote", other)
    assert done.result["remote"] == str(versions.remote)
    assert f"at {versions.remote}, so this remote is used instead of {other}" in caplog.text
    assert not other.exists()
    assert assert_whole(versions) == 3


def test_a_remote_that_was_set_up_by_hand_is_used_by_its_own_name(
    run: Run, trained: Path, versions: Versions
) -> None:
    run("publish", "--run", trained, *versions.options)
    anew = versions._replace(git=versions.git.with_name("by hand"))
    clone, moved = versions.git.with_name("clone"), versions.git.with_name("moved")
    script = (
        f"git clone -q {versions.git} {clone} && cd {clone} && "
        "sed -i s/storage/Mine/ .dvc/config && "
        f"sed -i 's,url = .*,url = {moved},' .dvc/config && "
        "git -c user.name=me -c user.email=me@localhost commit -qam moved && "
        f"git clone -q --bare . '{anew.git}'"
    )
    subprocess.run(["sh", "-c", script], check=True)
    done = run("publish", "--run", trained, *anew.options, "--remote", moved)
    assert done.result["reused"] is True
    assert_whole(anew._replace(remote=moved))


def test_a_hook_of_another_repository_may_publish(
    run: Run, trained: Path, versions: Versions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "-q", tmp_path / "users"], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "users" / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "users" / ".git" / "index"))
    assert run("publish", "--run", trained, *versions.options).code == 0
    monkeypatch.undo()
    assert assert_whole(versions) == 2
    assert not (tmp_path / "users" / ".git" / "index").exists()


def test_an_unmeasured_run_is_refused(run: Run, copies: list[Path], versions: Versions) -> None:
    shutil.rmtree(copies[0] / "evaluation")
    refused = run("publish", "--run", copies[0], *versions.options)
    assert refused.code == 65
    assert "run evaluate first" in refused.error
    assert not versions.git.exists()


def test_data_come_back_as_they_were_at_each_revision(
    run: Run, versions: Versions, tmp_path: Path
) -> None:
    music = write_music(tmp_path / "original" / "genres", n_tracks=2)
    table = tmp_path / "original" / "tracks.csv"
    table.write_text("path,track_id,artist\ngenres/bass/bass.00000.wav,one,somebody\n")
    first = run("publish", "--data", music, "--name", "set", *versions.options)
    assert first.result["data"] == "dvc:set/genres"
    assert run("publish", "--data", music, "--name", "set", *versions.options).result["reused"]
    shutil.copy(music / "bass" / "bass.00000.wav", music / "bass" / "new.wav")
    second = run("publish", "--data", music, "--name", "set", *versions.options)
    elsewhere = versions._replace(store=tmp_path / "another store")
    options = ["--data", "dvc:set/genres", *elsewhere.options]
    newest = run("pull", *options)
    assert newest.result["version"] == second.result["version"]
    old = run("pull", "--revision", first.result["tag"], *options)
    assert old.result["version"] == first.result["version"]
    for pulled, n_files in ((newest, 7), (old, 6)):
        folder = Path(pulled.result["audio"])
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert len(files) == n_files
        for file in files:
            assert file.read_bytes() == (music / file.relative_to(folder)).read_bytes()
        assert (folder.parent / "tracks.csv").read_text() == table.read_text()
    assert run("pull", *options).result["reused"] is True
    assert run("scan", "--audio", newest.result["audio"], "--artifacts", tmp_path / "s").code == 0
    assert_whole(versions)


def test_a_folder_is_pulled_by_leaving_it_where_it_is(run: Run, music: Path) -> None:
    pulled = run("pull", "--data", music)
    assert pulled.result == {"audio": str(music), "version": "", "reused": True}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--data", "/no/such/folder"], "no such folder"),
        (["--data", "dvc:set/genres"], "has no data set set/genres; available: none"),
        (["--data", "dvc:../x"], "not a valid data set name"),
        (["--data", ".", "--revision", "v1"], "a folder has no revision"),
        (["--data", "dvc:set", "--revision", "v9"], "v9"),
        (["--data", "dvc:set", "--revision", "models"], "models"),  # a path, not a revision
        (["--data", "dvc:set", "--revision=--help"], "--help: not a revision"),
    ],
)
def test_what_cannot_be_pulled_is_named(
    run: Run, trained: Path, versions: Versions, words: list[str], reason: str
) -> None:
    run("publish", "--run", trained, *versions.options)
    refused = run("pull", *words, *versions.options)
    assert refused.code == 65
    assert reason in refused.error


def test_a_number_is_never_given_to_two_tags(run: Run, versions: Versions, tmp_path: Path) -> None:
    music = write_music(tmp_path / "genres", n_tracks=1)
    tags = []
    for number in range(3):
        shutil.copy(music / "bass" / "bass.00000.wav", music / "bass" / f"new{number}.wav")
        tags.append(
            run("publish", "--data", music, "--name", "set", *versions.options).result["tag"]
        )
        if number == 1:
            versions.ask("tag", "--delete", tags[0])
    assert tags == ["data/set.v1", "data/set.v2", "data/set.v3"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda music: (music / "bass" / "b\udcff.wav").touch(), "UTF-8"),
        (lambda music: (music / "bass" / "out.wav").symlink_to("/etc/hostname"), "points outside"),
        (lambda music: (music / "blues").symlink_to(music / "bass"), "is a link to a folder"),
    ],
)
def test_what_cannot_be_kept_as_it_is_is_named_before_any_work(
    run: Run, versions: Versions, tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    music = write_music(tmp_path / "genres", n_tracks=1)
    spoil(music)
    refused = run("publish", "--data", music, "--name", "set", *versions.options)
    assert refused.code == 65
    assert words in refused.error
    assert not (versions.remote / "files").exists()


@pytest.mark.parametrize("name", ["../x", "a.", "a..b", "x.lock", "-x y", ""])
def test_a_name_that_no_tag_can_have_is_refused(
    run: Run, versions: Versions, music: Path, name: str
) -> None:
    refused = run("publish", "--data", music, "--name", name, *versions.options)
    assert refused.code in {64, 65}
    assert "not a valid data set name" in refused.error or "Give --run" in refused.stderr
