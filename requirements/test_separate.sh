#!/usr/bin/env bash
# Runs the tests that need no mmdet in a virtual environment of their own.
# Usage: requirements/test_separate.sh core|oldest
# core: torch and mmengine alone. What only this proves: the package needs no other library. The
#   tests of torch.compile prove no more here than in the whole environment, and take minutes.
# oldest: the oldest torch and mmengine of setup.cfg. On Linux with an x86 processor, this torch is
#   a CUDA build of several GB.
set -euo pipefail
cd "$(dirname "$0")/.."
name=$1
venv=.venv-$name
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
export PIP_DISABLE_PIP_VERSION_CHECK=1

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install -q -r "requirements/$name.txt"
"$venv/bin/python" -m pip install -q --no-build-isolation --no-deps -e .
if [ "$name" = core ]; then
    "$venv/bin/python" -c '
from importlib.util import find_spec
names = ("mmcv", "mmdet", "mmseg", "safetensors", "transformers")
found = [name for name in names if find_spec(name)]
assert not found, f"this environment must not have {found}: remove it"'
    "$venv/bin/python" -m pytest -k 'not compiled'
else
    "$venv/bin/python" -m convnext_backbone.ops.build
    "$venv/bin/python" -m pytest
fi
