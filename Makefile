# make demo       trains, evaluates and draws a Mask R-CNN on generated shapes
# make demo-seg   the same with a UPerNet for semantic segmentation
# make test       lint and all tests; on the OneDL forks with STACK=onedl, in an environment of their own
# All set the environment up first: minutes once, nothing afterwards.

STACK := openmmlab
VENV := $(if $(filter openmmlab,$(STACK)),.venv,.venv-$(STACK))
PYTHON_VENV := $(VENV)/bin/python
# Without nvcc, mmcv's operators are built for the CPU alone, whatever GPU there is.
ON_CPU := CUDA_VISIBLE_DEVICES=

.PHONY: help demo demo-seg test clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

$(VENV)/ready: requirements/setup_env.sh $(wildcard requirements/*.txt) setup.cfg pyproject.toml
	requirements/setup_env.sh $(VENV) $(STACK)
	touch $@

demo: $(VENV)/ready
	$(ON_CPU) $(PYTHON_VENV) tools/demo/demo.py

demo-seg: $(VENV)/ready
	$(ON_CPU) $(PYTHON_VENV) tools/demo/demo.py segmentation

test: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(ON_CPU) $(PYTHON_VENV) -m pytest

clean:
	rm -rf .venv .venv-onedl work_dirs data/shapes convnext_backbone/ops/kernels-*.so
