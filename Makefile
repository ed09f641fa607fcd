# The project's commands; `make` without a target lists them. Needs Python 3.11 to 3.13 with venv.

# 3.11 comes first because the images use it. A Python that lacks venv or does not start is skipped.
PYTHON ?= $(or $(shell for name in python3.11 python3.12 python3.13; do \
	$$name -c 'import ensurepip' 2>/dev/null && command -v $$name && break; done),python3)
ENVS := .venv
DEPLOY := $(ENVS)/deploy/bin/python -m deploy
UV := $(ENVS)/deploy/bin/uv
export UV_PYTHON_DOWNLOADS := never
WEB_PORT ?= 8080
FLOWER_PORT ?= 5555
PROFILES = $(if $(filter 1,$(S3)),--s3) $(if $(filter 1,$(DOCKER)),--docker)
PORTS = --web-port $(WEB_PORT) --flower-port $(FLOWER_PORT)
# Options for the values that the user gave to make. `make up` and `make env` write them into .env.
CHOSEN = $(if $(filter-out file,$(origin WEB_PORT)),--web-port $(WEB_PORT)) \
	$(if $(filter-out file,$(origin FLOWER_PORT)),--flower-port $(FLOWER_PORT)) \
	$(and $(DAILY),$(if $(filter 1,$(DAILY)),--daily,--on-demand))
ifneq ($(filter-out 0 1,$(DAILY)),)
$(error DAILY=$(DAILY) is neither 1 nor 0; set DAILY=1 or DAILY=0)
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo up down status logs env up-local down-local status-local \
	test quick check format bench docs lock clean same soak soak-embedded soak-stack \
	test-ml test-airflow test-deploy test-versions test-embedded test-stack test-gpu

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(ENVS)/deploy.made $(ENVS)/airflow.made $(ENVS)/ml.made ## create the three environments under .venv/

demo: setup ## start the embedded stack, train on the demo music, show the result, stop the stack
	@$(DEPLOY) demo $(PORTS)

up: $(ENVS)/deploy.made ## check the machine, write .env, build, start the containers, run a task on every queue; S3=1: with its own S3 service; DOCKER=1: tasks can run in containers (the Docker way); DAILY=1: also train at midnight UTC
	@$(DEPLOY) up $(PROFILES) $(CHOSEN)

down: $(ENVS)/deploy.made ## stop the containers and keep their data; VOLUMES=1: delete the data too; YES=1: do not ask first
	@$(DEPLOY) down $(if $(filter 1,$(VOLUMES)),--volumes) $(if $(filter 1,$(YES)),--yes)

status: $(ENVS)/deploy.made ## show the containers
	@$(DEPLOY) status

logs: $(ENVS)/deploy.made ## follow the containers' logs
	@$(DEPLOY) logs

env: $(ENVS)/deploy.made ## write .env with generated secrets; existing values are kept
	@$(DEPLOY) env $(PROFILES) $(CHOSEN)

up-local: setup ## start the embedded stack and leave it running; DAILY=1: also train at midnight UTC
	@$(DEPLOY) up-local $(PORTS) $(if $(filter 1,$(DAILY)),--daily)

down-local: $(ENVS)/deploy.made ## stop the embedded stack and keep its data
	@$(DEPLOY) down-local

status-local: $(ENVS)/deploy.made ## show the embedded stack's processes
	@$(DEPLOY) status-local

# Each suite has a budget in seconds, for two slow cores (tests/conftest.py). `quick` runs two LANES at a
# time, and runs all of them even if one fails. test-ml runs two tests at a time, with one thread for each
# training. `make test QUICK=done` skips the LANES; use it if they have already run. With FIRST=-x each
# suite of the LANES stops at its first failure.
LANES := test-ml check test-airflow test-deploy
test: $(if $(QUICK),,quick) test-versions test-embedded ## all checks and tests that need no Docker

quick: setup ## the checks and tests that need no server, in about three minutes
	@$(MAKE) --no-print-directory -k -j2 --output-sync=target $(LANES)

test-ml: $(ENVS)/ml.tested ## test the ML package in an environment without Airflow
	OMP_NUM_THREADS=1 $(ENVS)/ml/bin/pytest -n 2 --dist worksteal --budget 240 $(FIRST) \
		--ignore tests/ml/versions tests/ml

test-versions: $(ENVS)/ml.tested ## test the versioning of data and models, with Git and S3 servers
	OMP_NUM_THREADS=1 $(ENVS)/ml/bin/pytest --budget 400 tests/ml/versions

test-airflow: $(ENVS)/airflow.tested ## test fleet and the DAGs in an environment without torch
	$(ENVS)/airflow/bin/pytest --budget 120 $(FIRST) tests/fleet tests/dags

test-deploy: $(ENVS)/deploy.tested ## test deploy and the repository itself
	$(ENVS)/deploy/bin/pytest --budget 90 $(FIRST) tests/deploy tests/repository

test-embedded: setup $(ENVS)/deploy.tested ## test one embedded stack: a full run through the REST API
	$(ENVS)/deploy/bin/pytest --budget 1200 tests/embedded

test-stack: $(ENVS)/deploy.tested ## run all tests that need Docker on one stack of containers
	$(ENVS)/deploy/bin/pytest --budget 1500 tests/stack

# The Python that runs test-gpu: any Python 3.11 to 3.13 that has torch and pytest. With the GPU machine's
# own Python, test-gpu needs no network.
GPU_PYTHON ?= $(ENVS)/ml/bin/python
test-gpu: $(if $(filter file,$(origin GPU_PYTHON)),$(ENVS)/ml.tested) ## run the tests that need a GPU; GPU_PYTHON=python3 uses that Python instead of .venv/ml
	$(GPU_PYTHON) -m pytest --budget 480 tests/gpu

BASE ?= HEAD~1
same: $(ENVS)/ml.made ## check that HEAD computes the same as the commit BASE (default HEAD~1), bit for bit, on the demo music
	@$(ENVS)/ml/bin/python tests/same.py $(BASE)

SOAK := .soak.jsonl
soak: setup $(ENVS)/deploy.tested $(ENVS)/ml.tested ## run the tests that are too slow to run for every change, many of them tens of times; writes docs/soak.md
	@rm -f $(SOAK)
	-@$(ENVS)/ml/bin/pytest --soak $(SOAK) tests/ml
	-@$(MAKE) --no-print-directory -k -j2 --output-sync=target soak-stack soak-embedded
	@$(ENVS)/ml/bin/python tests/soak.py $(SOAK) docs/soak.md

soak-stack soak-embedded: soak-%:
	$(ENVS)/deploy/bin/pytest --soak $(SOAK) tests/$*

check: $(ENVS)/deploy.tested $(ENVS)/airflow.tested $(ENVS)/ml.tested ## format, lint, types, import rules
	$(ENVS)/deploy/bin/ruff format --check .
	$(ENVS)/deploy/bin/ruff check .
	$(ENVS)/deploy/bin/mypy --python-executable $(ENVS)/ml/bin/python music_genre benchmarks
	$(ENVS)/deploy/bin/mypy --python-executable $(ENVS)/airflow/bin/python fleet dags
	$(ENVS)/deploy/bin/mypy --python-executable $(ENVS)/deploy/bin/python deploy
	$(ENVS)/deploy/bin/lint-imports

format: $(ENVS)/deploy.tested ## format the code and fix what ruff can fix
	$(ENVS)/deploy/bin/ruff format .
	$(ENVS)/deploy/bin/ruff check --fix .

bench: $(ENVS)/ml.tested ## benchmark: compare with other programs, interrupt trainings, stream large data (an hour, 20 GB of disk)
	@for name in features training interruptions streaming; do \
		echo "== $$name"; $(ENVS)/ml/bin/python benchmarks/$$name.py || exit 1; done

docs: $(ENVS)/ml.tested $(ENVS)/deploy.made ## regenerate docs/cli.md, deploy/queues.env, deploy/compose/gpu.yml, docs/least-privilege.md
	$(ENVS)/ml/bin/python tests/ml/test_cli.py --write
	$(DEPLOY) generate

COMPILE = $(UV) pip compile -q pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
lock: $(ENVS)/deploy.made ## resolve requirements/*.txt again from pyproject.toml
	$(COMPILE) --upgrade --extra airflow -o requirements/airflow.txt
	$(COMPILE) --upgrade --extra ml -o requirements/ml.txt
	$(COMPILE) --upgrade --extra preprocessing -c requirements/ml.txt -o requirements/preprocessing.txt
	$(COMPILE) --upgrade --extra deploy -c requirements/airflow.txt -o requirements/deploy.txt
	$(COMPILE) --upgrade --extra dev -c requirements/airflow.txt -c requirements/ml.txt \
		-c requirements/deploy.txt -o requirements/dev.txt
	$(COMPILE) --upgrade --extra image -c requirements/deploy.txt -o requirements/image.txt
	$(COMPILE) --upgrade --extra rivals -c requirements/ml.txt -o requirements/rivals.txt

clean: ## stop the embedded stack and delete it; the environments are kept
	@if [ -x $(ENVS)/deploy/bin/python ]; then $(DEPLOY) down-local; fi
	rm -rf .local-stack

define FIT
import importlib.util, sys
found = ".".join(map(str, sys.version_info[:2]))
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit(f"error: {sys.executable} is Python {found}; install Python 3.11, 3.12 or 3.13 and run make with PYTHON=/its/path")
if not importlib.util.find_spec("ensurepip"):
    sys.exit(f"error: {sys.executable} cannot create virtual environments; install python{found}-venv (Debian, Ubuntu)")
endef
export FIT

# A stamp (.made, .tested) is touched only after its whole environment was made and checked.
$(ENVS)/deploy.made: requirements/deploy.txt
	@$(PYTHON) -c "$$FIT" || exit 1
	@echo "making .venv/deploy"
	@$(PYTHON) -m venv --clear $(ENVS)/deploy
	@$(ENVS)/deploy/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r $<
	@$(UV) pip check -q --python $(ENVS)/deploy && touch $@

$(ENVS)/%.made: requirements/%.txt $(ENVS)/deploy.made pyproject.toml
	@echo "making .venv/$*"
	@$(UV) venv -q --clear --python $(PYTHON) $(ENVS)/$*
	@$(UV) pip sync -q --compile-bytecode --python $(ENVS)/$* --require-hashes $<
	@$(UV) pip install -q --python $(ENVS)/$* --no-deps --editable .
	@$(UV) pip check -q --python $(ENVS)/$* && touch $@

# At its first use librosa compiles code, which takes about 15 s, and caches the result.
COMPILED := import librosa, numpy; librosa.feature.melspectrogram(y=librosa.resample(numpy.ones(9000), orig_sr=8000, target_sr=22050))
$(ENVS)/%.tested: requirements/dev.txt requirements/rivals.txt $(ENVS)/%.made
	@$(UV) pip install -q --python $(ENVS)/$* --require-hashes -r requirements/dev.txt \
		$(if $(filter ml,$*),-r requirements/rivals.txt)
	@$(if $(filter ml,$*),$(ENVS)/ml/bin/python -c '$(COMPILED)')
	@$(UV) pip check -q --python $(ENVS)/$* && touch $@
