# Every target sets up its environment itself: conda where it is present, else venv + pip.
.DEFAULT_GOAL := help
.PHONY: help setup demo tune results results-smax teams peers gpu test test-oracle test-benchmarl test-wheel test-cluster test-faults test-browser test-soak test-mutants docs lint format lock clean

CONDA := $(shell command -v mamba || command -v conda)
PYTHON ?= python3.11
ENV_DIR := .venv
RUN = $(if $(CONDA),$(CONDA) run --no-capture-output -n k24lab,env PATH="$(CURDIR)/$(ENV_DIR)/bin:$$PATH")
STAMP := $(if $(CONDA),.conda-env,$(ENV_DIR)/.installed)

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(STAMP)  ## create the environment with the exact versions of the lock

.conda-env: environment.yml requirements.lock pyproject.toml setup.py $(wildcard k24lab/ops/csrc/*.[ch])
	$(CONDA) env list | grep -qE '^k24lab\s' && $(CONDA) env update -n k24lab -f environment.yml || $(CONDA) env create -f environment.yml
	touch $@

# Without --no-compile pip compiles every module of every package, which takes a minute; training and notebooks import
# one in thirty of them. These are compiled here: where Python may not write bytecode (PYTHONDONTWRITEBYTECODE, as in many
# containers) every start would compile PyTorch anew, which takes seconds.
$(ENV_DIR)/.installed: requirements.lock pyproject.toml setup.py $(wildcard k24lab/ops/csrc/*.[ch])
	@command -v $(PYTHON) >/dev/null || { echo "k24lab needs Python 3.11: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(ENV_DIR)
	$(ENV_DIR)/bin/pip install --quiet --disable-pip-version-check --no-compile -r requirements.lock
	$(ENV_DIR)/bin/pip install --quiet --disable-pip-version-check --no-deps -e .
	env -u PYTHONDONTWRITEBYTECODE $(ENV_DIR)/bin/python -c "import ipykernel.kernelapp, matplotlib.pyplot, mpe2, papermill, pytest, \
	  scipy.stats, seaborn, torch._dynamo, vmas, k24lab.cli"
	touch $@

demo: setup  ## train K-2:4 and baselines on RoleNav and draw the figures (under 10 minutes on 2 cores)
	$(RUN) k24lab sweep notebooks/grids/demo.yaml
	$(RUN) k24lab notebooks --runs demo

# The notebooks write to build/test (notebooks/conftest.py), all else that draws to output/: figures/ holds the results.
test: setup  ## lint, types, all tests, and the notebooks with small parameters
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) pytest -n 2 tests
	$(RUN) pytest --nbmake -n 2 notebooks

TASKS := rolenav3 rolenav8 vmas_navigation vmas_dispersion vmas_het_mass spread tag
STUDIES := regimes recipe resets vmas_navigation8 pipeline
tune: setup  ## the tuning of docs/protocol.md (about 13 core-hours); what is in figures/tuning is not trained again
	$(RUN) python -m study tune
	$(RUN) python -m study choose

results results-smax: export K24LAB_FIGURES := $(CURDIR)/figures
ifdef TASK
results: setup
	$(RUN) python -m study report --tasks $(TASK)
	$(RUN) python -m study results
	$(RUN) python docs/tools/generate_results.py
else
results: tune  ## every run behind the pages of results (days on 2 cores), then the figures; TASK=rolenav3: the tuned study of one task
	$(RUN) python -m study report
	$(RUN) python -m study results
	for grid in $(TASKS) $(STUDIES); do $(RUN) k24lab sweep notebooks/grids/$$grid.yaml || exit 1; done
	for grid in $(STUDIES); do $(RUN) k24lab notebooks 05_ablations --runs $$grid || exit 1; done
	$(RUN) k24lab sweep notebooks/grids/ablation.yaml
	$(RUN) k24lab notebooks 05_ablations --runs ablation --parameters reference k24
	$(RUN) k24lab sweep notebooks/grids/alike.yaml
	$(RUN) k24lab notebooks 05_ablations --runs alike --parameters reference k24
	$(RUN) k24lab sweep notebooks/grids/sharing.yaml
	$(RUN) k24lab notebooks 05_ablations --runs sharing --parameters reference gains24
	$(RUN) k24lab sweep notebooks/grids/sharing_kept.yaml
	$(RUN) k24lab notebooks 05_ablations --runs sharing_kept --parameters reference gains24
	$(RUN) k24lab sweep notebooks/grids/masks16.yaml
	$(RUN) k24lab notebooks 05_ablations --runs masks16 --parameters reference random24
	$(RUN) k24lab sweep notebooks/grids/gains16.yaml
	$(RUN) k24lab notebooks 05_ablations --runs gains16 --parameters reference gains24
	$(RUN) k24lab sweep notebooks/grids/literal.yaml
	$(RUN) k24lab notebooks 05_ablations --runs literal --parameters reference k24-literal dynamics '[q_taken_mean, target_mean, td_error_abs, train_eval_gap]'
	$(RUN) k24lab notebooks 10_settings --runs regimes
	$(RUN) k24lab notebooks 10_settings --runs recipe --parameters n_agents 12 n_roles 3 role_width 32 role_alpha_lr_factor 20.0
	$(RUN) k24lab sweep notebooks/grids/types.yaml
	$(RUN) k24lab notebooks 07_unit_types --runs types
	$(RUN) k24lab sweep notebooks/grids/separate.yaml
	$(RUN) k24lab notebooks 09_what_separates --runs separate
	$(RUN) k24lab notebooks 01_masks
	$(RUN) k24lab notebooks 06_ampere_speedup --runs rolenav8
	$(RUN) k24lab figures $(TASKS) --name paper
	$(RUN) python docs/tools/generate_results.py
endif

results-smax: setup  ## both studies of SMAX (installs half a gigabyte more; many hours on 2 cores)
	$(RUN) pip install --quiet --disable-pip-version-check -e '.[smax]'
	$(RUN) k24lab sweep notebooks/grids/smax.yaml
	$(RUN) k24lab notebooks 07_unit_types 05_ablations --runs smax
	$(RUN) python -m study report --tasks smax
	$(RUN) python -m study results
	$(RUN) python docs/tools/generate_results.py

teams: export K24LAB_HOME := $(CURDIR)
teams: setup  ## the trained teams of k24lab/teams anew (2 minutes on an idle core)
	$(RUN) k24lab train --task rolenav:n_agents=8 --method k24-alpha --lr 0.01 --name teams
	$(RUN) k24lab train --task vmas/navigation --method k24-alpha --alpha-lr-factor 20 --updates-per-rollout 16 --t-max 307200 --name teams
	$(RUN) k24lab export rolenav_n_agents_8-k24-alpha-s0-17207eaf --format safetensors --output k24lab/teams/rolenav8.safetensors
	$(RUN) k24lab export vmas_navigation-k24-alpha-s0-7b1d75e7 --format safetensors --output k24lab/teams/vmas_navigation.safetensors

peers: setup  ## speed beside other libraries, as far as they are given: PEERS="--peer benchmarl=PYTHON --peer epymarl=CHECKOUT"
	$(RUN) python -m benchmarks.peers $(PEERS) && $(RUN) python docs/tools/generate_results.py

gpu: export K24LAB_FIGURES := $(CURDIR)/figures
gpu: setup  ## all measurements on an NVIDIA GPU (under 8 minutes after the set-up); what is in figures/gpu is not measured again
	$(RUN) python -m benchmarks.gpu $(ARGS)

test-wheel:  ## the wheel in an empty environment outside the repository, with and without its extras (minutes)
	rm -rf build/wheel && mkdir -p build/wheel
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	bash tests/outside.sh $(PYTHON) build/wheel/k24lab-*.whl

test-oracle:  ## the aggregates against rliable, in an environment of its own (it needs pandas 2)
	$(PYTHON) -m venv build/oracle
	build/oracle/bin/pip install --quiet "rliable==1.2.0" "pandas<3" jaxtyping pytest
	PYTHONPATH=. build/oracle/bin/python -m pytest -q -c /dev/null --rootdir=. --noconftest -p no:cacheprovider tests/test_oracle.py

test-benchmarl:  ## K-2:4 inside BenchMARL, in an environment of its own (some minutes on 2 cores)
	$(PYTHON) -m venv build/benchmarl
	build/benchmarl/bin/pip install --quiet --disable-pip-version-check -r requirements-benchmarl.lock
	PYTHONPATH=. build/benchmarl/bin/python -m pytest -q -c /dev/null --rootdir=. --noconftest -p no:cacheprovider tests/test_integration_benchmarl.py

test-cluster: setup  ## grids that are killed midway, on this machine, on a real SLURM and on a Ray of two nodes (half an hour on 2 cores)
	$(RUN) pip install --quiet --disable-pip-version-check -e '.[slurm,ray]'
	command -v slurmctld >/dev/null || { test "$$(id -u)" = 0 && apt-get install -qq -y slurmctld slurmd slurm-client munge; } || echo "no SLURM: its tests are skipped"
	$(RUN) pytest -s -m cluster tests/test_cluster.py

test-faults: setup  ## 400 kills of runs, 12,000 damaged files and settings, full and read-only disks (as root)
	K24LAB_FAULTS=100 K24LAB_FUZZ=2000 $(RUN) pytest -s tests/test_faults.py tests/test_fuzz.py tests/test_tensorfile.py tests/test_vector_env.py

test-browser: setup  ## every notebook in JupyterLab and Chromium (which root gets from Debian): runs, shows its figures
	$(RUN) pip install --quiet --disable-pip-version-check -e '.[browser]' || echo "no playwright: its tests are skipped"
	PYTHONPATH=tests $(RUN) python -c "import lab, sys; sys.exit(lab.find_chromium() is None)" || \
	  { test "$$(id -u)" = 0 && apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	  apt-get -o DPkg::Lock::Timeout=300 install -qq -y --no-install-recommends chromium; } || \
	  echo "no Chromium: its tests are skipped"
	$(RUN) pytest -s -m browser tests/test_browser.py

test-soak: setup  ## an hour of training and a sweep of 200 runs: memory, open files and processes stay as they are
	$(RUN) pytest -s -m soak tests/test_soak.py

test-mutants: setup  ## 400 one-line mistakes in the package, each of which its tests must notice (half an hour on 2 cores)
	PYTHONPATH=$(CURDIR):$(CURDIR)/tests $(RUN) python -m mutants $(ARGS)

docs: setup  ## the website of the documentation in build/site, with executed notebooks (about 3 minutes on 2 cores)
	$(RUN) pip install --quiet --disable-pip-version-check -r requirements-docs.lock
	rm -rf build/docs && mkdir -p build/docs/notebooks && cp notebooks/*.ipynb build/docs/notebooks
	$(RUN) python -m pytest -q -p notebooks.conftest --nbmake --overwrite -n 2 build/docs/notebooks
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict

lint: setup  ## ruff and mypy alone
	$(RUN) ruff check . && $(RUN) ruff format --check . && $(RUN) mypy

format: setup  ## fix the style
	$(RUN) ruff check --fix . && $(RUN) ruff format .

lock:  ## resolve pyproject.toml anew and write the four lock files
	for pair in requirements.lock:dev,onnx requirements-smacv2.lock:dev,smacv2 requirements-benchmarl.lock:dev,benchmarl; do \
	  lock=$${pair%:*} extra=$${pair#*:}; rm -rf build/lock && $(PYTHON) -m venv build/lock && \
	  build/lock/bin/pip install --quiet torch==2.13.0 -e ".[$$extra]" && \
	  { sed -n '/^#/p' $$lock; build/lock/bin/pip freeze --exclude-editable | sed 's/+cpu//'; } > build/$$lock && \
	  mv build/$$lock $$lock || exit 1; \
	done
	rm -rf build/lock && $(PYTHON) -m venv build/lock && build/lock/bin/pip install --quiet -r requirements.lock
	build/lock/bin/pip install --quiet -c requirements.lock -e ".[docs]"
	sed -n '/^#/p' requirements-docs.lock > build/docs.lock
	build/lock/bin/pip freeze --exclude-editable | sed 's/+cpu//' | grep -vxFf requirements.lock >> build/docs.lock
	mv build/docs.lock requirements-docs.lock

clean:  ## remove the environment and caches; runs and figures stay
	rm -rf $(ENV_DIR) .conda-env build *.egg-info .pytest_cache .ruff_cache .mypy_cache
