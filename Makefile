PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo nano test test-slow style clean

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

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

# Needs ffprobe too, which Debian's ffmpeg has
test-slow: $(VENV)/installed
	command -v ffprobe > /dev/null || apt-get install --yes --quiet ffmpeg
	$(BIN)/python -m pytest -m slow

style: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) outputs build dist *.egg-info src/*.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -exec rm -rf {} +
