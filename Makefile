# make demo   train, evaluate and draw a Mask R-CNN on generated shapes
# make test   run all tests
# Both set the environment up first; that takes minutes once and nothing afterwards.

VENV := .venv
PYTHON_BIN := $(VENV)/bin/python

.PHONY: demo test lint clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

$(VENV)/ready: tools/setup_env.sh requirements/build.txt requirements/dev.txt requirements/constraints.txt setup.cfg pyproject.toml
	tools/setup_env.sh $(VENV)
	touch $@

demo: $(VENV)/ready
	$(PYTHON_BIN) tools/demo.py --work-dir work_dirs/demo

test: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(PYTHON_BIN) -m pytest

clean:
	rm -rf $(VENV) work_dirs
