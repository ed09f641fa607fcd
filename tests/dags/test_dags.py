"""Every DAG parses fast, names known queues and calls only documented commands."""

import itertools
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowSkipException,
    ParamValidationError,
)

from fleet.contract import queues
from fleet.pipeline import refuse_unknown_names

REPOSITORY = Path(__file__).resolve().parent.parent.parent
DAG_FILES = sorted((REPOSITORY / "dags").glob("*.py"))
CLI_REFERENCE = (REPOSITORY / "docs" / "cli.md").read_text()


@pytest.fixture(scope="module")
def dags():
    bag = DagBag(str(REPOSITORY / "dags"))
    assert bag.import_errors == {}
    return bag.dags


@pytest.fixture(scope="module")
def commands(dags):
    """A pair (task, words) for every command of every DAG, mapped tasks included."""
    found = []
    for task in (task for dag in dags.values() for task in dag.tasks):
        if not task.is_mapped:
            found += [(task, task.command)] if hasattr(task, "command") else []
        elif isinstance(listed := task.expand_input.value["command"], list):
            found += [(task, words) for words in listed]
    assert {task.task_id for task, _ in found} >= {"check", "pull", "train", "evaluate", "publish"}
    return found


def test_one_dag_a_file_named_like_it(dags):
    """A policy violation hides all DAGs of the same file in the API, so each file has one DAG."""
    assert sorted(dags) == [path.stem for path in DAG_FILES]
    for path in DAG_FILES:
        assert len(path.read_text().splitlines()) <= 130


def test_no_dag_shadows_a_package():
    """The DAG folder is on sys.path: a file named like a package would hide that package."""
    taken = sys.stdlib_module_names | {"airflow", "fleet", "deploy", "music_genre", "click"}
    assert not taken & {path.stem for path in DAG_FILES}


def test_every_task_names_a_queue_of_the_contract(dags):
    for dag in dags.values():
        for task in dag.tasks:
            assert task.queue in queues(), f"{dag.dag_id}.{task.task_id}"


def test_every_task_is_a_command_of_its_name_with_documented_options(commands):
    for task, (program, command, *words) in commands:
        if task.dag_id == "music_genre_docker" and program == "python3":
            assert command == "__main__.py"
            command, *words = words
        else:
            assert program == "music-genre"
        assert task.task_id in (command, f"{command}-{task.queue}")
        section = re.search(rf"^## .*\b{command}\b.*?(?=^## |\Z)", CLI_REFERENCE, re.M | re.S)
        assert section, f"docs/cli.md has no section for {command}"
        for option in (word for word in map(str, words) if word.startswith("--")):
            assert f"`{option}" in section.group() or f"{option} " in section.group(), option


def test_training_goes_to_the_gpu_queue_and_preprocessing_to_the_cpu_queue(dags):
    queue_of = {task.task_id: task.queue for task in dags["music_genre_training"].tasks}
    assert queue_of == {
        "check": "cpu",
        "pull": "cpu",
        "scan": "cpu",
        "extract": "cpu",
        "split": "cpu",
        "train": "gpu",
        "evaluate": "gpu",
        "publish": "cpu",
    }


def test_the_stages_follow_each_other(dags):
    order = [task.task_id for task in dags["music_genre_training"].topological_sort()]
    assert order == ["check", "pull", "scan", "extract", "split", "train", "evaluate", "publish"]


@pytest.mark.parametrize("seeds", [[3, 4], [3.0, 4, 3], "3,4", " 3, 4, 3 "])
def test_a_sweep_trains_every_model_with_every_seed_on_one_split(dags, seeds):
    sweep = dags["music_genre_sweep"]
    given = {name: param.value for name, param in sweep.params.items()}
    given |= {"models": ["resnet18", "vit_b_16"], "seeds": seeds}
    listed = sweep.get_task("plan").python_callable(params=given)
    assert [(each["model"], each["seed"]) for each in listed] == [
        *(("resnet18", "3"), ("resnet18", "4")),
        *(("vit_b_16", "3"), ("vit_b_16", "4")),
    ]
    measured = [sweep.get_task(name) for name in ("train", "evaluate")]
    assert [task.queue for task in measured] == ["gpu", "gpu"]
    assert len({task.get_closest_mapped_task_group().group_id for task in measured}) == 1


def test_the_stages_of_a_sweep_follow_each_other(dags):
    order = [task.task_id for task in dags["music_genre_sweep"].topological_sort()]
    stages = ["pull", "scan", "extract", "split", "plan", "train", "evaluate", "compare"]
    assert order == ["check", *stages]
    for earlier, later in itertools.pairwise(order):
        assert dags["music_genre_sweep"].get_task(later).upstream_task_ids == {earlier}


class Results:
    """A stand-in for a task instance: it returns the results (XComs) of a sweep's tasks."""

    def __init__(self, **left):
        self._left = left

    def xcom_pull(self, task_id, *, map_indexes=None):
        found = self._left.get(task_id)
        return found if map_indexes is None else [found[index] for index in map_indexes]


def test_a_sweep_ends_with_a_table_whose_best_on_validation_comes_first(dags, caplog):
    compare = dags["music_genre_sweep"].get_task("compare")
    assert compare.is_teardown  # a teardown also runs after failures; the run still fails
    trained = [
        {"validation_accuracy": 0.25, "run": "/runs/a"},
        None,
        {"validation_accuracy": 0.5, "run": "/runs/c"},
    ]
    candidates = [{"model": "resnet18", "seed": str(seed)} for seed in range(3)]
    evaluated = [{"accuracy": 0.75}, None, None]
    left = Results(plan=candidates, train=trained, evaluate=evaluated)
    with caplog.at_level("INFO"):
        table = compare.python_callable(ti=left)
    assert [row["seed"] for row in table] == ["2", "0", "1"]
    assert table[1] == {
        "validation_accuracy": 0.25,
        "test_accuracy": 0.75,
        "model": "resnet18",
        "seed": "0",
        "run": "/runs/a",
    }
    assert [record.getMessage() for record in caplog.records] == [
        "validation 0.500, test none: resnet18, seed 2, run /runs/c",
        "validation 0.250, test 0.750: resnet18, seed 0, run /runs/a",
        "validation none, test none: resnet18, seed 1, run None",
    ]


def test_a_sweep_without_candidates_has_no_table(dags):
    with pytest.raises(AirflowSkipException, match="no candidate was trained"):
        dags["music_genre_sweep"].get_task("compare").python_callable(ti=Results())


def test_run_parameters_have_choices_and_limits(dags):
    """Each choice of the form is listed in docs/cli.md, which is generated from the command."""
    params = dags["music_genre_training"].params
    for name in ("optimizer", "criterion"):
        for choice in params.get_param(name).schema["enum"]:
            assert choice in CLI_REFERENCE
    for name in ("epochs", "learning_rate", "seed", "split_seed"):
        schema = params.get_param(name).schema
        assert {"minimum", "exclusiveMinimum"} & set(schema)
        assert "maximum" in schema
    assert set(params.get_param("gpu_queue").schema["enum"]) <= set(queues())
    assert set(params) == {
        *("audio", "model", "optimizer", "criterion", "epochs", "learning_rate", "seed"),
        *("gpu_queue", "revision", "split_seed"),
    }


def test_every_field_of_a_form_says_what_it_is_and_may_be_left_as_it_opens(dags):
    """Airflow 3.3.2 rejects an empty string as a missing value, and the form shows no reason."""
    for dag in dags.values():
        for name in dag.params:
            param = dag.params.get_param(name)
            assert param.schema["title"], name
            assert param.description.endswith("."), name
            assert param.value != "", name
            assert param.value is not None or "null" in param.schema["type"], name


def test_forms_offer_the_models_that_the_command_knows(dags):
    for dag_id, name in (("music_genre_training", "model"), ("music_genre_sweep", "models")):
        offered = dags[dag_id].params.get_param(name).schema["examples"]
        assert "shufflenet_v2_x0_5" in offered
        assert len(offered) == 80


def test_a_task_whose_forerunner_has_no_result_gets_an_empty_word(dags):
    """If a user marks a training success, `evaluate` refuses the empty word, without a retry."""
    evaluate = dags["music_genre_training"].get_task("evaluate")
    nothing = SimpleNamespace(xcom_pull=lambda *_, **__: None)
    word = evaluate.get_template_env().from_string(evaluate.command[-1]).render(ti=nothing)
    assert (evaluate.command[-2], word) == ("--run", "")


def words_of(dags, dag_id, task_id, **conf):
    """A task's command, rendered for a run with this configuration."""
    dag = dags[dag_id]
    params = {name: dag.params.get_param(name).value for name in dag.params} | conf
    task = dag.get_task(task_id)
    environment = task.get_template_env()
    return [environment.from_string(word).render(params=params) for word in task.command]


def test_what_is_left_empty_is_the_commands_own_default(dags):
    words = words_of(dags, "music_genre_training", "check")
    assert words[words.index("--revision") + 1] == ""
    assert words[words.index("--learning-rate") + 1] == "0"
    assert words[words.index("--models") + 1] == "resnet18"
    several = words_of(dags, "music_genre_sweep", "check", models=["vgg11", "resnet18"])
    assert several[several.index("--models") + 1] == "vgg11,resnet18"


def test_a_whole_number_may_be_written_with_a_point(dags):
    words = words_of(dags, "music_genre_training", "check", epochs=3.0)
    assert words[words.index("--epochs") + 1] == "3"
    split = dags["music_genre_training"].get_task("split").command
    assert split[-1] == "{{ params.split_seed | int }}"


def test_an_unknown_name_in_a_runs_configuration_is_refused_with_a_near_one(dags):
    dag = dags["music_genre_training"]
    run = SimpleNamespace(conf={"epochs": 3, "modle": "resnet18"})
    with pytest.raises(AirflowFailException, match="'modle' is unknown; write model"):
        refuse_unknown_names({"dag": dag, "dag_run": run})
    refuse_unknown_names({"dag": dag, "dag_run": SimpleNamespace(conf={"epochs": 3})})
    refuse_unknown_names({"dag": dag, "dag_run": SimpleNamespace(conf=None)})


@pytest.mark.parametrize(
    "dag_id", ["music_genre_training", "music_genre_sweep", "music_genre_docker"]
)
def test_a_run_begins_with_what_refuses_wrong_input(dags, dag_id):
    (first,) = dags[dag_id].roots
    assert (first.task_id, first.queue) == ("check", "cpu")
    assert first._pre_execute_hook is refuse_unknown_names


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("learning_rate", -1), ("optimizer", "sdg!"), ("model", "a; b"), ("audio", "")],
)
def test_a_parameter_out_of_bounds_is_refused(dags, name, value):
    with pytest.raises(ValueError, match=str(value) if value != "" else "non-empty"):
        dags["music_genre_training"].params.get_param(name).resolve(value)


@pytest.mark.parametrize("seeds", ["", "1 2", "-1", "1,", "1.5", "2147483648", [], [1, 1], [-1]])
def test_what_is_no_list_of_seeds_is_refused(dags, seeds):
    with pytest.raises(ParamValidationError):
        dags["music_genre_sweep"].params.get_param("seeds").resolve(seeds)


def test_what_is_made_has_an_asset_each(dags):
    tasks = dags["music_genre_training"].tasks
    made = {task.task_id: task.asset.name for task in tasks if getattr(task, "asset", None)}
    assert made == {
        "scan": "music_genre_data_set",
        "split": "music_genre_features",
        "publish": "music_genre_model",
    }
    follower = dags["music_genre_new_model"]
    assert [asset.name for asset in follower.timetable.asset_condition.objects] == [
        "music_genre_model"
    ]


def test_nothing_has_a_schedule_that_nobody_asked_for(dags):
    """The schedule of DAILY=1 is tested in tests/fleet/test_timetable.py."""
    scheduled = {name for name, dag in dags.items() if dag.timetable.can_be_scheduled}
    assert scheduled == {"music_genre_new_model"}, "which follows what was published"


def test_the_training_waits_for_nobody_to_switch_it_on(dags):
    dag = dags["music_genre_training"]
    assert dag.is_paused_upon_creation is False
    assert dag.catchup is False


def test_the_docker_way_is_paused_and_publishes_what_it_trained(dags):
    dag = dags["music_genre_docker"]
    assert dag.is_paused_upon_creation is True
    order = [(task.task_id, task.queue) for task in dag.topological_sort()]
    assert order == [
        ("check", "cpu"),
        ("create-image-features-from-audio", "gpu"),
        ("train-using-image-features", "gpu"),
        ("publish", "cpu"),
    ]
    train = dag.get_task("train-using-image-features").command
    folder = train[train.index("--checkpoints_path") + 1]
    publish = dag.get_task("publish").command
    assert publish[publish.index("--run") + 1] == folder


PARSE = """
import sys, time
import airflow.sdk, airflow.providers.celery.executors.celery_executor
began = time.process_time()
import {module}
seconds = time.process_time() - began
heavy = {{"torch", "torchvision", "numpy", "dvc", "celery.app.task"}} & set(sys.modules)
print(seconds, sorted(heavy - {{"celery.app.task"}}))
"""


@pytest.mark.parametrize("module", [path.stem for path in DAG_FILES])
def test_a_dag_parses_in_under_a_second_without_heavy_packages(module):
    """Parsing must be fast, because each task parses its DAG's file. CPU seconds are measured."""
    answer = subprocess.check_output(
        [sys.executable, "-c", PARSE.format(module=module)],
        cwd=REPOSITORY / "dags",
        env={"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'dags'}", "PATH": "/usr/bin:/bin"},
        text=True,
    )
    seconds, heavy = answer.splitlines()[-1].split(maxsplit=1)
    assert float(seconds) < 1.0  # measured: 0.03 to 0.3 on an idle machine
    assert heavy == "[]"
