# Development of SDVideo. Needs python3 (3.10 or newer, with venv) and make; the rest is installed into .venv.

PYTHON ?= python3
DEVICE ?= cpu
VENV := .venv
PY := $(VENV)/bin/python
PIP_INSTALL := $(PY) -m pip install -qq --no-input --disable-pip-version-check --constraint constraints.txt
BENCHMARKS := $(wildcard benchmarks/*.py)

# Where the tests find ComfyUI: $COMFYUI_PATH, else the one this pack is installed in, else comfy-cli's default.
COMFYUI := $(shell \
	if [ -n "$(COMFYUI_PATH)" ]; then set -- "$(COMFYUI_PATH)"; \
	elif [ "$$(basename "$$(dirname "$(CURDIR)")")" = custom_nodes ]; then set -- ../.. "$$HOME/comfy/ComfyUI"; \
	else set -- "$$HOME/comfy/ComfyUI"; fi; \
	for path; do if [ -f "$$path/main.py" ]; then echo "$$path"; break; fi; done)

# Stamps are named after all that an installation reads, so that a change there, or a ComfyUI that appears, installs again.
KEY := $(shell (echo "$(CURDIR)"; cat pyproject.toml constraints.txt $(if $(COMFYUI),"$(COMFYUI)/requirements.txt")) | cksum | cut -d' ' -f1)
PACKAGE := $(VENV)/package-$(KEY)
TOOLS := $(VENV)/tools-$(KEY)

# Some tests look at ComfyUI in the system's Chromium. Without it they are skipped, and say so.
CHROMIUM = $(firstword $(foreach name,chromium chromium-browser google-chrome google-chrome-stable,$(shell command -v $(name))))
APT_GET = $(shell command -v apt-get >/dev/null || exit; \
	if [ "$$(id -u)" = 0 ]; then echo apt-get; elif sudo -n true 2>/dev/null; then echo sudo -n apt-get; fi)

# pyright's Node.js and its own code are installed packages; without this it asks the network for a newer version.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: help test lint types chromium format demo retrain-demo bench screenshots clean distclean
.NOTPARALLEL:

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Two workers of one thread each: the models here are too small for a second thread to help.
test: lint types chromium ## set up, lint, types, then all tests; ComfyUI's too where there is one ($COMFYUI_PATH)
	@OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

chromium: $(TOOLS) ## install Chromium with apt, where there is a ComfyUI to look at and none yet
	@if [ -n "$(COMFYUI)" ] && [ -z "$(CHROMIUM)" ] && [ -n "$(APT_GET)" ]; then \
		echo "Installing Chromium for the tests in a browser"; \
		$(APT_GET) -qq update && $(APT_GET) -qq install --yes --no-install-recommends chromium >/dev/null \
		|| echo "Chromium could not be installed: those tests are skipped"; \
	fi

lint: $(TOOLS) ## check style and layout with ruff
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

types: $(TOOLS) ## check types with pyright
	@$(PY) -m pyright

format: $(TOOLS) ## mend what ruff can mend
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

demo: $(PACKAGE) ## write demo.gif, with the small model that comes with SDVideo
	@$(VENV)/bin/sdvideo demo "a red circle moving left" --output demo.gif

retrain-demo: $(PACKAGE) ## make that model again from nothing, without its few-step LoRA; a stopped run goes on; DEVICE=cuda
	@$(PY) -m sdvideo_core.demo.recipe sdvideo_core/assets/demo_model --work output/demo --device $(DEVICE)

bench: $(TOOLS) ## run every benchmark; their results go to benchmarks/results
	@set -e; for script in $(BENCHMARKS); do echo "$$script"; $(PY) "$$script"; done

screenshots: $(TOOLS) chromium ## take the pictures in the README and on the nodes' help pages again, from ComfyUI in Chromium
	@$(PY) -m docs.screenshots

clean: ## remove what the other targets leave, except .venv
	rm -rf .pytest_cache .ruff_cache build dist *.egg-info demo.gif
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	rm -rf $(VENV)

$(TOOLS): $(VENV)/bin/pip
	@echo "Installing SDVideo and its test tools$(if $(COMFYUI), and what $(COMFYUI) needs) into $(VENV)"
	@rm -f $(VENV)/package-* $(VENV)/tools-*
	@$(PIP_INSTALL) --editable '.[dev]' $(if $(COMFYUI),--requirement "$(COMFYUI)/requirements.txt")
	@touch $(PACKAGE) $@

$(PACKAGE): $(VENV)/bin/pip
	@echo "Installing SDVideo into $(VENV)"
	@rm -f $(VENV)/package-* $(VENV)/tools-*
	@$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "SDVideo needs Python 3.10 or newer")'
	@$(PYTHON) -m venv $(VENV)
