# make demo         trains and evaluates a Mask R-CNN on generated shapes and draws its predictions
# make demo-seg     does the same with a UPerNet for semantic segmentation
# make test         runs lint, type checks and all tests; with STACK=onedl on the OneDL forks
# make test-core    runs the tests that need torch and mmengine alone, without any other library
# make test-oldest  runs the tests that need no mmdet with the oldest supported torch and mmengine
# make env          only sets up the environment of demo, demo-seg and test
# make clean        removes the environments, work_dirs and the generated shapes
# Each command sets up its environment first, which takes minutes the first time. demo, demo-seg,
# test and env use an NVIDIA GPU if there is one; DEVICE=cpu or DEVICE=cuda chooses.
# make env DEVICE=cuda CUDA_ARCHS=8.6,9.0 needs no GPU: it compiles for these compute capabilities.

STACK := openmmlab
CARDS := $(shell requirements/find_cards.sh)
DEVICE := $(if $(CARDS),cuda,cpu)
ifeq ($(filter cpu cuda,$(DEVICE)),)
$(error DEVICE must be cpu or cuda, not $(DEVICE))
endif

ifeq ($(DEVICE),cuda)
CUDA_ARCHS := $(CARDS)
ifneq ($(words $(CUDA_ARCHS)),1)
$(error DEVICE=cuda needs an NVIDIA GPU, or the compute capabilities to compile for: CUDA_ARCHS=8.6,9.0)
endif
else
ifdef CUDA_ARCHS
$(error CUDA_ARCHS=$(CUDA_ARCHS) needs DEVICE=cuda)
endif
ON_CPU := CUDA_VISIBLE_DEVICES=
endif

# Each stack and device has its own environment: none of them replaces another, and computers with
# and without a GPU can share a folder.
VENV := .venv$(addprefix -,$(filter-out openmmlab,$(STACK)))$(addprefix -,$(filter cuda,$(DEVICE)))
PYTHON_VENV := $(VENV)/bin/python
READY := $(VENV)/ready$(addprefix -,$(CUDA_ARCHS))

.PHONY: help demo demo-seg test test-core test-oldest env usable kernels clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

$(READY): requirements/setup_env.sh $(wildcard requirements/*.txt) setup.cfg setup.py pyproject.toml
	requirements/setup_env.sh $(VENV) $(STACK) $(CUDA_ARCHS)
	touch $@

env: $(READY)

# The kernels are outside the environment, in the user's cache folder.
kernels: $(READY)
	@$(PYTHON_VENV) -m convnext_backbone.ops.build || \
		echo 'The kernels did not compile; everything works without them, but slower' >&2

# That there is a card does not mean that torch can use it.
usable: $(READY)
ifeq ($(DEVICE),cuda)
	@$(PYTHON_VENV) -W ignore -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || \
		{ echo 'torch finds no GPU in this machine: use DEVICE=cpu' >&2; exit 1; }
endif

demo: usable kernels
	$(ON_CPU) $(PYTHON_VENV) tools/demo/demo.py

demo-seg: usable kernels
	$(ON_CPU) $(PYTHON_VENV) tools/demo/demo.py segmentation

test: usable kernels
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(PYTHON_VENV) -m pytest -n logical --dist loadfile --no-loadscope-reorder
	$(if $(filter cuda,$(DEVICE)),$(PYTHON_VENV) -m pytest -m cuda)

test-core:
	requirements/test_separate.sh core

test-oldest:
	requirements/test_separate.sh oldest

clean:
	rm -rf .venv .venv-cuda .venv-onedl .venv-onedl-cuda .venv-core .venv-oldest work_dirs data/shapes
