"""A changed DAG file is in force within seconds, and a broken DAG file harms no run."""

import time
from urllib.parse import urlsplit

import pytest
from conftest import SETTINGS, down_local, up_local, wait_until

from deploy.demo import trigger
from deploy.embedded.stack import LocalStack
from deploy.embedded.state import State
from tests.fakes.git_server import LOGIN, Host, serving

pytestmark = pytest.mark.timeout(600)

EDITED = """\
import time
from pathlib import Path

from airflow.sdk import DAG, task


def tell(context):
    Path({gate!r} + "-told").touch()


with DAG("edited", schedule=None, is_paused_upon_creation=False, on_success_callback=tell):

    @task(queue="cpu")
    def waits():
        while not Path({gate!r}).exists():
            time.sleep(0.2)

    @task(queue="cpu")
    def says():
        return {says!r}

    waits() >> says()
"""


def is_in_force(stack, word: str) -> bool:
    return word in str(stack.api.get("dagSources/edited"))


def errors(stack) -> list[str]:
    """The files for which Airflow shows import errors."""
    return [each["filename"] for each in stack.api.get("importErrors")["import_errors"]]


def reason_of(stack, name: str) -> str:
    """The import error that Airflow shows for a file; empty if there is none."""
    found = stack.api.get("importErrors")["import_errors"]
    return next((each["stack_trace"] for each in found if each["filename"] == name), "")


def without(text: str, task: str) -> str:
    """The DAG file `text` without its second task; the shorter file can still be imported."""
    return text[: text.index(f'    @task(queue="cpu")\n    def {task}')] + "    waits()\n"


def seconds_until(is_so) -> float:
    began = time.monotonic()
    wait_until(is_so)
    return time.monotonic() - began


def test_an_edited_dag_is_in_force_within_seconds_and_a_half_one_harms_no_run(
    stack, own_dags, tmp_path, figures
):
    file, gate = own_dags / "edited.py", tmp_path / "gate"
    first = EDITED.format(gate=str(gate), says={"word": "first"})
    file.write_text(first)
    seconds = [seconds_until(lambda: stack.api.exists("dags/edited"))]
    run = trigger(stack, {}, "edited")
    wait_until(lambda: "running" in [row.state for row in run.rows()])

    halves = {
        "SyntaxError": first[:-9],
        "the file no longer has task says of DAG edited": without(first, "says"),
    }
    for reason, half in halves.items():
        file.write_text(half)
        wait_until(lambda: reason in reason_of(stack, "held_back/edited.py"))  # noqa: B023
    (own_dags / "new.py").write_text(first[:200])
    wait_until(lambda: sorted(errors(stack)) == ["held_back/edited.py", "new.py"])
    gate.touch()
    wait_until(lambda: run.state() == "success")
    assert run.result("says") == {"word": "first"}
    wait_until(gate.with_name("gate-told").exists)  # the dag-processor ran the callback

    (own_dags / "new.py").unlink()
    file.write_text(first.replace("'first'", "'second'"))
    seconds.append(seconds_until(lambda: is_in_force(stack, "second")))
    again = trigger(stack, {}, "edited")
    wait_until(lambda: again.state() == "success")
    assert again.result("says") == {"word": "second"}
    wait_until(lambda: errors(stack) == [])
    figures["in force"] = (
        f"a new DAG after {seconds[0]:.0f} s, a changed one after {seconds[1]:.0f}"
    )
    assert max(seconds) < 60  # allows for load; an idle machine needs 15 s


class GitHost(Host):
    """A Git host that can be away for some time."""

    def start(self, port: int = 0) -> str:
        self.server = serving(self.bare.parent, LOGIN, port=port)
        return self.server.__enter__()

    def stop(self) -> None:
        self.server.__exit__(None, None, None)


@pytest.fixture
def of_git(tmp_path, fake_driver):
    """A stack of its own whose DAGs are in a Git repository, and the repository's host."""
    host, gate = GitHost(tmp_path), tmp_path / "gate"
    host.push("edited.py", EDITED.format(gate=str(gate), says="first"))
    folder = tmp_path / "state"
    folder.mkdir()
    address = host.start()
    credentials = tmp_path / "credentials"
    credentials.write_text(address.replace("://", f"://{LOGIN}@") + "\n")
    lines = f"DAGS_GIT={address}/dags.git\nDAGS_GIT_CREDENTIALS_FILE={credentials}\n"
    (folder / "airflow.env").write_text(f"{SETTINGS}{lines}")
    try:
        up_local(folder, fake_driver)
        yield LocalStack(State(folder)), host, gate, urlsplit(address).port
    finally:
        down_local(folder)
        host.stop()


AWAY_SECONDS = 600


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_run_keeps_its_commit_and_a_git_host_that_is_away_stops_nothing(of_git, figures):
    stack, host, gate, port = of_git
    wait_until(lambda: stack.api.exists("dags/edited"))
    run = trigger(stack, {}, "edited")
    wait_until(lambda: "running" in [row.state for row in run.rows()])
    host.push("edited.py", EDITED.format(gate=str(gate), says="second"))
    seconds = seconds_until(lambda: is_in_force(stack, "second"))
    figures["a pushed change in force"] = f"after {seconds:.0f} s"

    host.stop()
    time.sleep(AWAY_SECONDS)
    log = (stack.state.logs / "dag-processor.log").read_text()
    assert log.count("; the DAGs in force stay") == 1
    gate.touch()
    wait_until(lambda: run.state() == "success")
    assert run.xcom("says") == "first"
    during = trigger(stack, {}, "edited")
    wait_until(lambda: during.state() == "success")
    assert during.xcom("says") == "second"
    versions = [stack.api.get(each._address)["bundle_version"] for each in (run, during)]
    assert len({*versions}) == 2

    host.start(port)
    host.push("edited.py", EDITED.format(gate=str(gate), says="third"))
    wait_until(lambda: is_in_force(stack, "third"))
    figures["the Git host away"] = f"for {AWAY_SECONDS / 60:.0f} min, then followed again"
