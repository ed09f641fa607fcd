"""A changed DAG file is in force within seconds, and a broken DAG file harms no run."""

import time

import pytest
from conftest import wait_until

from deploy.demo import trigger

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
    assert max(seconds) < 60  # allows for load; an idle machine needs 15
