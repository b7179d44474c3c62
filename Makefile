# `make demo` trains PQN on Breakout, `make test` runs all checks, `make site` builds the documentation.
VENV := .venv
BIN := $(VENV)/bin
# Without the bytecode of packages, every process that imports JAX would spend seconds on compiling their source.
export PYTHONDONTWRITEBYTECODE :=

demo: $(VENV)/installed
	$(BIN)/qlax train minatar/breakout --total-steps 500000 --seeds 2

test: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2

site: $(VENV)/installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# --no-compile saves time, because Python compiles modules when they are imported, and most of them never are.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile

$(VENV)/installed: pyproject.toml
	python3 -m venv $(VENV)
	$(INSTALL) --upgrade pip
	$(INSTALL) --editable .
	touch $@

$(VENV)/installed-test: pyproject.toml
	python3 -m venv $(VENV)
	$(INSTALL) --upgrade pip
	$(INSTALL) --editable '.[atari,craftax,gymnasium,jaxmarl,jumanji,navix,onnx,pgx,tensorboard,video,wandb,xminigrid]' --group test
	touch $(VENV)/installed $@

.PHONY: demo site test
