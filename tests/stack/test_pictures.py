"""The pages that users look at, in a real browser; the README shows screenshots of them.

`PICTURES=docs/images make test-stack` keeps the screenshots.
"""

import os
from pathlib import Path

import pytest
from conftest import finish, wait_until

from deploy.containers import environment
from deploy.demo import trigger
from deploy.running import ask

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(os.environ.get("PICTURES", tmp_path))


TASKS = ("check", "pull", "scan", "extract", "split", "train", "evaluate", "publish")


def test_the_grid_of_a_run(page, stack, run, folder):
    page.goto(f"{stack.web_address}/dags/{run.dag_id}/runs/{run.run_id}")
    for task in TASKS:
        page.get_by_text(task, exact=True).first.wait_for()
    page.wait_for_timeout(1500)  # until the animation of the bars has ended
    page.screenshot(path=folder / "training-run.png")
    assert (folder / "training-run.png").stat().st_size > 30_000


def test_the_graph_of_the_pipeline(page, stack, run, folder):
    page.goto(f"{stack.web_address}/dags/{run.dag_id}/runs/{run.run_id}")
    page.get_by_text("scan", exact=True).first.wait_for()
    page.set_viewport_size({"width": 1400, "height": 500})
    page.keyboard.press("g")
    for task in TASKS:
        page.locator(".react-flow__node", has_text=task).first.wait_for()
    page.wait_for_timeout(1500)
    page.screenshot(path=folder / "graph.png")
    assert (folder / "graph.png").stat().st_size > 30_000


def test_flower_shows_the_workers(browser, stack, project, run, folder):
    password = environment.read(project.env_file)["FLOWER_PASSWORD"]
    context = browser.new_context(
        viewport={"width": 1400, "height": 500},
        http_credentials={"username": "admin", "password": password},
    )
    page = context.new_page()
    page.goto(f"{stack.flower_address}/workers")
    for queue in ("cpu", "gpu"):
        page.get_by_text(f"{queue}@").first.wait_for()
    page.wait_for_timeout(1000)
    # The GPU tests replaced workers; Flower must not list the old workers.
    assert page.locator("#workers-table tbody tr").count() == len(stack.online_workers())
    page.screenshot(path=folder / "flower.png")
    assert (folder / "flower.png").stat().st_size > 10_000


def test_a_misspelt_queue_is_an_import_error_and_other_files_dags_run(stack, page):
    def errors() -> list[dict]:
        return stack.api.get("importErrors")["import_errors"]

    wait_until(lambda: ask(lambda: bool(errors())), seconds=60)
    (error,) = errors()
    assert error["filename"].endswith("misspelt.py")
    assert (
        "task train names queue 'trianing', which no worker serves; write one of cpu, gpu"
        in error["stack_trace"]
    )
    assert not stack.api.exists("dags/misspelt")
    assert finish(trigger(stack, {}, "fleet_check")) == "success"
    page.goto(f"{stack.web_address}/")
    page.get_by_text("Import Error").first.click()
    page.get_by_text("misspelt.py").first.click()
    page.get_by_text("names queue 'trianing', which no worker serves").first.wait_for()
