#!/usr/bin/env bash
# Runs the tests for which torch and mmengine are enough in an environment with nothing else.
# What only these tests prove: the package needs no other library. Those of torch.compile prove no
# more here than in the whole environment, and take minutes.
# Usage: requirements/test_core.sh VENV
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
export PIP_DISABLE_PIP_VERSION_CHECK=1

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install -q -r requirements/core.txt
"$venv/bin/python" -m pip install -q --no-build-isolation --no-deps -e .
"$venv/bin/python" -c '
from importlib.util import find_spec
found = [name for name in ("mmcv", "mmdet", "mmseg", "safetensors", "transformers") if find_spec(name)]
assert not found, f"this environment must not have {found}: remove it"'
"$venv/bin/python" -m pytest -k 'not compiled'
