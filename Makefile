PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GOLDEN := tests/fixtures/golden
MODEL := outputs/miniature

.PHONY: demo test test-slow style clean

# Everything that the other targets need, once, and again when the requirements change
$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

$(MODEL): | $(VENV)/installed
	$(BIN)/loomvideo convert --loomvideo $(GOLDEN)/LoomVideo --mllm $(GOLDEN)/Qwen3-VL --wan $(GOLDEN)/Wan2.2-TI2V \
		--output $@ --dtype float32

# Edits a real clip with converted weights, in miniature and untrained: the result is noise
demo: $(VENV)/installed $(MODEL)
	$(BIN)/loomvideo edit tests/fixtures/cat.mp4 "put the cup in the image beside the cat" \
		--reference tests/fixtures/coffee.jpg --model $(MODEL) --steps 10 --seed 0 \
		--output outputs/edit.mp4 --contact-sheet outputs/edit.png

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
