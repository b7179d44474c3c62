# `make demo` shows PQN learning, `make test` proves it, `make site` builds the documentation.
VENV := .venv
BIN := $(VENV)/bin

demo: $(VENV)/installed
	$(BIN)/qlax train minatar/breakout --total-steps 500000 --seeds 2

test: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2

site: $(VENV)/installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/installed: pyproject.toml
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[atari,craftax,gymnasium,jaxmarl,jumanji,navix,onnx,pgx,tensorboard,video,wandb,xminigrid]' --group test
	touch $@

.PHONY: demo site test
