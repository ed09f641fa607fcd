import io

from rich.console import Console

from deploy.demo import TaskRow, task_table


def test_the_table_names_task_queue_worker_and_seconds():
    rows = [
        TaskRow("extract 2", "cpu", "success", "cpu@host", 1.25),
        TaskRow("train", "gpu", "waiting", "", None),
    ]
    out = io.StringIO()
    Console(file=out, width=100).print(task_table(rows))
    lines = out.getvalue().splitlines()
    assert any("extract 2" in line and "cpu@host" in line and "1.2" in line for line in lines)
    assert any("train" in line and "gpu" in line and "waiting" in line for line in lines)
