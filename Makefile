# Everything here runs from a virtual environment in this folder. All that the machine needs is make and
# Python 3.11 or newer; `make help` lists the targets.

VENV  ?= .venv
PY    := $(VENV)/bin/python
UV    := $(VENV)/bin/uv
STAMP := $(VENV)/.installed

# The first Python that is new enough and can make virtual environments. Each candidate is run, not only looked up:
# a version manager may have a launcher for a version that is not there. Expanded only where the environment is made.
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13 python3.14 python; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& { echo $$python; break; }; done)

# uv does not read pip's settings; a package index that is given to pip in the environment is meant for both.
ifneq ($(PIP_INDEX_URL),)
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif

# Extra arguments for the command of a target: make test ARGS="-m 'not slow'".
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-prefect-3.8 bench test-ui check check-format check-lint check-types \
	check-manifests check-layers check-dependencies check-wheel format constraints clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9.-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv and install the project with everything for development

$(UV):
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer with venv is needed; name one: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt uv

# Tried a second time with the machine's own certificates, for networks that re-sign what passes through them.
INSTALL = $(UV) pip install --python $(PY) -c constraints.txt -e ".[dev]"

$(STAMP): pyproject.toml constraints.txt | $(UV)
	$(INSTALL) || UV_SYSTEM_CERTS=1 $(INSTALL)
	@touch $@

demo: install ## optimise the cantilever beam: three served Tesseracts, Prefect's embedded server, a report
	$(PY) -m examples.beam.demo $(ARGS)

test: install ## run the tests, but for the long ones and those of the user interface
	$(PY) -m pytest --ignore=tests/ui -n 2 --dist loadgroup -m "not slow" $(ARGS)

test-slow: install ## run the long tests: whole matrices, many kills, many random cases
	$(PY) -m pytest --ignore=tests/ui -n 2 --dist loadgroup -m slow $(ARGS)

# Laid over the environment: of what it needs, only lower bounds differ.
test-prefect-3.8: install ## run the tests of tasks and flows on the oldest Prefect that is supported
	$(UV) pip install --quiet --python $(PY) --target $(CURDIR)/build/prefect-3.8 --no-deps prefect==3.8.8
	PYTHONPATH=$(CURDIR)/build/prefect-3.8 $(PY) -m pytest tests/tasks tests/flows tests/test_blocks.py -m "not slow" $(ARGS)

test-ui: install ## drive the forms and pages of the Prefect UI in a browser
	bash tests/ui/run.sh $(ARGS)

bench: install ## measure against the peers, side by side
	$(PY) -m benchmarks $(ARGS)

check: check-format check-lint check-types check-layers check-dependencies check-wheel ## format, lint, types, layers, dependencies, wheel

check-format: install
	$(PY) -m ruff format --check .

check-lint: install
	$(PY) -m ruff check .

check-types: install
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(PY) -m pyright --pythonpath $(PY)

check-layers: install
	$(PY) -m pytest -q tests/test_layers.py tests/test_import.py

check-dependencies: install
	$(PY) tools/audit.py

check-manifests: install ## validate Kubernetes manifests against its schema (downloads 100 MB from PyPI)
	$(UV) tool run --from kubernetes-validate kubernetes-validate --strict deployments/kubernetes/*.yaml

check-wheel: install
	$(PY) tools/check_wheel.py

format: install ## format the code and mend what the linter can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# Keeps what is pinned already where it still fits; make constraints ARGS=--upgrade moves everything to the newest.
# dev names all other extras but torch, which would pin a build of PyTorch and all of CUDA.
constraints: $(UV) ## pin the versions of all dependencies, for every supported Python
	$(UV) pip compile --quiet --universal --no-header --no-annotate --extra dev pyproject.toml -o constraints.txt $(ARGS)

clean: ## remove the environment, caches and build results
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
