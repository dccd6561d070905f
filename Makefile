# make demo         trains and evaluates a Mask R-CNN on generated shapes and draws its predictions
# make demo-seg     does the same with a UPerNet for semantic segmentation
# make test         runs lint, type checks and all tests; with STACK=onedl on the OneDL forks
# make test-core    runs the tests that need torch and mmengine alone, without any other library
# make test-oldest  runs the tests that need no mmdet with the oldest supported torch and mmengine
# make clean        removes the environments, work_dirs and the generated shapes
# Each command sets up its environment first, which takes minutes the first time.

STACK := openmmlab
VENV := $(if $(filter openmmlab,$(STACK)),.venv,.venv-$(STACK))
PYTHON_VENV := $(VENV)/bin/python
# Without nvcc, only mmcv's CPU operators are built, also on a machine with a GPU.
ON_CPU := CUDA_VISIBLE_DEVICES=

.PHONY: help demo demo-seg test test-core test-oldest kernels clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

$(VENV)/ready: requirements/setup_env.sh $(wildcard requirements/*.txt) setup.cfg setup.py pyproject.toml
	requirements/setup_env.sh $(VENV) $(STACK)
	touch $@

# The kernels are outside the environment, in the user's cache folder.
kernels: $(VENV)/ready
	@$(PYTHON_VENV) -m convnext_backbone.ops.build || \
		echo 'The kernels did not compile; everything works without them, but slower' >&2

demo: kernels
	$(ON_CPU) $(PYTHON_VENV) tools/demo/demo.py

demo-seg: kernels
	$(ON_CPU) $(PYTHON_VENV) tools/demo/demo.py segmentation

test: kernels
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(ON_CPU) $(PYTHON_VENV) -m pytest

test-core:
	requirements/test_core.sh .venv-core

test-oldest:
	requirements/test_oldest.sh .venv-oldest

clean:
	rm -rf .venv .venv-onedl .venv-core .venv-oldest work_dirs data/shapes
