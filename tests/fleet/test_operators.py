"""CommandOperator against commands that behave badly, each in a real process tree.

`task_process.py` stands in for Airflow's task process. tests/embedded tests a command's whole way
through scheduler, worker and API.
"""

import os
import re
import signal
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from task_process import start_task

from fleet.operators import process
from fleet.operators.command import command_environment
from fleet.operators.outcome import FIRST_ASKED, MAX_RESULT_BYTES, TRY_AGAIN_FOR
from fleet.operators.process import MAX_LINE_BYTES, TERM_GRACE_SECONDS


def run_task(*command: str, **options) -> dict:
    return start_task(*command, **options).outcome()


def python(code: str) -> tuple[str, str, str]:
    return sys.executable, "-c", code


def shell(code: str) -> tuple[str, str, str]:
    return "sh", "-c", code


def wait_for(path: Path, seconds: float = 20.0) -> str:
    give_up_at = time.monotonic() + seconds
    while not path.exists() or not path.read_text().endswith("\n"):
        assert time.monotonic() < give_up_at, f"{path} did not come"
        time.sleep(0.02)
    return path.read_text()


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_gone(pid: int, seconds: float = 3.0) -> None:
    give_up_at = time.monotonic() + seconds
    while lives(pid):
        assert time.monotonic() < give_up_at, f"process {pid} lives on"
        time.sleep(0.02)


def test_the_last_line_is_the_result_and_all_others_are_the_log():
    end = run_task(*shell('echo text; echo progress >&2; echo \'{"images": "a/b", "n": 3}\''))
    assert end["raised"] is None, end
    assert end["result"] == {"images": "a/b", "n": 3}
    assert {"text", "progress"} <= set(end["lines"])
    assert end["pushed"]["worker"] == os.uname().nodename


def test_a_result_without_newline_at_its_end_counts():
    assert run_task(*shell("printf '{}'"))["result"] == {}


@pytest.mark.parametrize("status", [2, 64, 65])
def test_bad_input_and_usage_fail_without_retry(status):
    end = run_task(*shell(f"echo 'error: what is wrong' >&2; exit {status}"))
    assert end["raised"] == "AirflowFailException"
    assert f"exit status {status}" in end["message"]


def test_what_a_command_says_of_its_failure_is_an_error_and_comes_last():
    """The UI shows the last error lines of a failed task."""
    end = run_task(*shell("echo text; echo 'error: one'; echo 'error: two' >&2; exit 65"))
    assert set(end["errors"][:-1]) == {"error: one", "error: two"}
    assert end["lines"][-2:] == ["Airflow's own lines", end["errors"][-1]]


@pytest.mark.parametrize(
    "code", ["exit 65", "echo 'error: asked again' >&2; echo done >&2; exit 3"]
)
def test_without_a_last_word_of_the_command_the_reason_is_ours(code):
    end = run_task(*shell(code))
    assert end["lines"][-1] == end["errors"][-1] == end["message"]


def test_try_again_is_rescheduled_which_spends_no_retry():
    end = run_task(*shell("exit 75"))
    assert end["raised"] == "AirflowRescheduleException"
    assert end["store"][FIRST_ASKED]["try"] == 2


@pytest.mark.parametrize(
    ("asked_in_try", "raised"), [(2, "AirflowException"), (1, "AirflowRescheduleException")]
)
def test_try_again_has_an_end(asked_in_try, raised):
    """A task must not be rescheduled for ever on a full disk, but only for one hour in each try."""
    at = datetime.now(UTC) - TRY_AGAIN_FOR - timedelta(seconds=1)
    store = {FIRST_ASKED: {"try": asked_in_try, "at": at.isoformat()}}
    assert run_task(*shell("exit 75"), store=store)["raised"] == raised


def test_a_worker_that_stops_does_not_begin_the_hour():
    task = start_task(*shell("exec sleep 60"))
    os.kill(task.pid, signal.SIGTERM)
    end = task.outcome()
    assert end["raised"] == "AirflowRescheduleException"
    assert end["store"] == {}


@pytest.mark.parametrize(
    ("state", "raised", "next_"),
    [
        ("failed", "AirflowTaskTerminated", "is not tried again"),
        ("success", "AirflowSkipException", "is not tried again"),
        ("restarting", "AirflowSkipException", "is started again by Airflow"),
    ],
)
def test_a_task_that_was_marked_or_cleared_says_what_comes_next(state, raised, next_):
    task = start_task(*shell("exec sleep 60"), state=state)
    os.kill(task.pid, signal.SIGTERM)
    end = task.outcome()
    assert end["raised"] == raised
    assert end["message"].endswith(f"; the task's state is now {state}, so the task {next_}")
    assert not any("the task is rescheduled" in line for line in end["lines"])


def test_sigterm_before_the_command_is_there_is_not_lost():
    task = start_task(*shell("sleep 60"))
    os.kill(task.pid, signal.SIGTERM)
    began = time.monotonic()
    assert task.outcome()["raised"] == "AirflowRescheduleException"
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("code", "found"),
    [("exit 1", "exit status 1"), ("exit 70", "exit status 70"), ("kill -9 $$", "signal 9")],
)
def test_any_other_end_fails_and_may_be_retried(code, found):
    end = run_task(*shell(code))
    assert end["raised"] == "AirflowException"
    assert found in end["message"]


@pytest.mark.parametrize("printed", ["", "done", "[1]", '"text"', "{"])
def test_a_success_without_a_json_object_fails(printed):
    end = run_task(*shell(f"printf '%s' '{printed}'"))
    assert end["raised"] == "AirflowFailException"
    assert "must print a JSON object" in end["message"]


@pytest.mark.parametrize(
    ("printed", "named"),
    [
        ('{"loss": NaN}', "loss is nan"),
        ('{"best": {"loss": [1.5, -Infinity]}}', "best.loss[1] is -inf"),
        ('{"n": 123456789012345678901234567890}', "n is 1.235e+29"),
        (r'{"name": "a\u0000b"}', r"name is 'a\x00b'"),
        (r'{"name": "\ud800"}', r"name is '\ud800'"),
        (r'{"\ud800": 1}', r"a key in the result is '\ud800'"),
    ],
)
def test_a_result_that_cannot_be_kept_fails_in_one_try_and_is_named(printed, named):
    """Without this check, Airflow 3.3.2 would fail to store the result, and rerun the command."""
    end = run_task("printf", "%s", printed)
    assert end["raised"] == "AirflowFailException"
    assert f"cannot be stored: {named}; print" in end["message"]


def test_the_largest_whole_numbers_are_kept():
    printed = f'{{"most": {2**64 - 1}, "least": {-(2**63)}, "none": null, "yes": true}}'
    assert run_task("printf", "%s", printed)["result"]["most"] == 2**64 - 1


@pytest.mark.parametrize(
    "code", ["print('{\"n\": 1}\\n\\n')", "print(1, end='\\r'); print('{\"n\": 1}')"]
)
def test_blank_lines_after_the_result_and_progress_before_it_are_no_fault(code):
    assert run_task(*python(code))["result"] == {"n": 1}


def test_a_result_too_large_for_an_xcom_fails():
    code = f"import json; print(json.dumps({{'data': 'x' * {MAX_RESULT_BYTES}}}))"
    end = run_task(*python(code))
    assert end["raised"] == "AirflowFailException"
    assert f"at most {MAX_RESULT_BYTES} bytes" in end["message"]
    assert len(end["message"]) < 1000


def test_a_command_that_is_not_installed_fails_without_retry():
    end = run_task("no-such-program")
    assert end["raised"] == "AirflowFailException"
    assert "'no-such-program' is not on this worker's PATH" in end["message"]


def test_megabytes_of_output_are_streamed_in_bounded_lines():
    code = "import sys; sys.stderr.write('x' * 30_000_000 + '\\n'); print('{}')"
    task = start_task(*python(code))
    end = task.outcome()
    pieces = [line for line in end["lines"] if line.startswith("xxx")]
    assert sum(map(len, pieces)) == 30_000_000
    assert max(map(len, pieces)) <= MAX_LINE_BYTES


def test_lines_come_while_the_command_runs():
    end = run_task(*shell("echo first >&2; sleep 0.7; echo last >&2; echo '{}'"))
    came = dict(zip(end["lines"], end["times"], strict=True))
    assert came["last"] - came["first"] > 0.6


def test_a_bar_that_is_written_over_shows_now_and_then_how_it_stands(monkeypatch):
    monkeypatch.setattr(process, "STATE_SECONDS", 0.5)
    code = (
        "import sys, time\n"
        "for n in range(40):\n"
        "    print(f'\\r{n} of 40', end='', file=sys.stderr, flush=True); time.sleep(0.05)\n"
        "print('{}')"
    )
    lines = [line for line in run_task(*python(code))["lines"] if line.endswith(" of 40")]
    assert 2 <= len(lines) <= 6
    assert lines[-1] == "39 of 40"


def test_bytes_that_are_no_text_do_not_end_the_task():
    end = run_task(*python("import os; os.write(2, b'\\xff\\xfe\\n'); print('{}')"))
    assert end["result"] == {}
    assert "\ufffd\ufffd" in end["lines"]


def test_nothing_is_read_by_a_shell():
    end = run_task("printf", "%s", '{"path": "; touch $HOME `id`"}')
    assert end["result"] == {"path": "; touch $HOME `id`"}


def test_sigterm_reaches_the_command_whose_exit_then_counts(tmp_path):
    code = (
        "import pathlib, signal, sys, time;"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75));"
        f"pathlib.Path({str(tmp_path / 'up')!r}).write_text('up\\n'); time.sleep(60)"
    )
    task = start_task(*python(code))
    wait_for(tmp_path / "up")
    os.kill(task.pid, signal.SIGTERM)
    assert task.outcome()["raised"] == "AirflowRescheduleException"


def test_a_command_that_ignores_sigterm_is_killed_within_airflows_five_seconds(tmp_path):
    code = f"trap '' TERM; echo $$ > {tmp_path / 'pid'}; while :; do sleep 0.1; done"
    task = start_task(*shell(code))
    pid = int(wait_for(tmp_path / "pid"))
    os.kill(task.pid, signal.SIGTERM)
    began = time.monotonic()
    end = task.outcome()
    assert time.monotonic() - began > TERM_GRACE_SECONDS - 0.5
    assert end["raised"] == "AirflowRescheduleException"
    assert any("signal 9" in line for line in end["lines"])
    assert_gone(pid)


ORPHANS = """
import os, pathlib, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", '''
import os, subprocess, sys, time
os.setsid()
grandchild = subprocess.Popen(["sleep", "300"], start_new_session=True)
open(sys.argv[1], "w").write(f"{{os.getpid()}} {{grandchild.pid}}\\\\n")
time.sleep(300)
''', {path!r}])
while not (os.path.exists({path!r}) and open({path!r}).read()): pass
{then}
"""


@pytest.mark.parametrize(
    "then", ["print('{}')", "os._exit(3)", "os.kill(os.getpid(), 9)"], ids=["ok", "exit", "kill"]
)
def test_what_a_command_leaves_behind_ends_with_it(tmp_path, then):
    """The command's children keep its pipes open, and start sessions to leave its process group."""
    path = tmp_path / "pids"
    began = time.monotonic()
    end = run_task(*python(ORPHANS.format(path=str(path), then=then)))
    assert time.monotonic() - began < 15
    assert (end["result"] == {}) == (then == "print('{}')")
    for pid in map(int, path.read_text().split()):
        assert_gone(pid)


@pytest.mark.parametrize("victim", ["task", "supervisor"])
def test_kill_9_of_task_or_supervisor_ends_the_command(tmp_path, victim):
    """In Airflow the supervisor is the task process's parent; here an extra fork is the parent."""
    pids, command_path = tmp_path / "pids", tmp_path / "command"
    supervisor_pid = os.fork()
    if supervisor_pid == 0:
        task = start_task(*shell(f"echo $$ > {command_path}; exec sleep 300"))
        pids.write_text(f"{task.pid}\n")
        os.waitpid(task.pid, 0)
        os._exit(0)
    task_pid, command_pid = int(wait_for(pids)), int(wait_for(command_path))
    os.kill(task_pid if victim == "task" else supervisor_pid, signal.SIGKILL)
    assert_gone(command_pid)
    assert_gone(task_pid)
    os.waitpid(supervisor_pid, 0)


def test_airflows_and_celerys_variables_stay_with_the_worker(monkeypatch):
    end = run_task(
        *shell("env; echo '{}'"),
        AIRFLOW__CELERY__BROKER_URL="redis://:secret@host",
        CELERY_BROKER_URL="redis://:secret@host",
        MUSIC_GENRE_ARTIFACTS="/artifacts",
    )
    printed = "\n".join(end["lines"])
    assert "secret@host" not in printed
    assert "MUSIC_GENRE_ARTIFACTS=/artifacts" in printed
    assert command_environment({"AIRFLOW_HOME": "x", "HOME": "y"}) == {"HOME": "y"}


def test_a_training_ends_by_itself_before_it_is_killed():
    text = (Path(__file__).parents[2] / "music_genre" / "store" / "signals.py").read_text()
    (grace,) = re.findall(r"^GRACE: Final = ([\d.]+)$", text, re.MULTILINE)
    assert float(grace) < TERM_GRACE_SECONDS
