#!/usr/bin/env bash
# Runs the tests that need no mmdet with the oldest torch and mmengine of setup.cfg, in their own
# virtual environment. On Linux with an x86 processor, this torch is a CUDA build of several GB.
# Usage: requirements/test_oldest.sh VENV
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
export PIP_DISABLE_PIP_VERSION_CHECK=1

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install -q -r requirements/oldest.txt
"$venv/bin/python" -m pip install -q --no-build-isolation --no-deps -e .
"$venv/bin/python" -m convnext_backbone.ops.build
"$venv/bin/python" -m pytest
