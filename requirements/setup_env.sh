#!/usr/bin/env bash
# Creates a virtual environment for development, with mmdet, mmseg and mmcv's compiled operators.
# Usage: requirements/setup_env.sh VENV [STACK]
# STACK is openmmlab (default) or onedl. Each needs its own VENV: their packages conflict.
# PYTHON sets the interpreter (default: python3.11).
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
stack=${2:-openmmlab}
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
log=$venv/mmcv-build.log
export PIP_DISABLE_PIP_VERSION_CHECK=1
case $stack in
    openmmlab) mmcv=mmcv ;;
    onedl) mmcv=onedl-mmcv ;;
    *) echo "STACK must be openmmlab or onedl, not $stack" >&2; exit 1 ;;
esac

say() { printf '\n== %s\n' "$*"; }
pip_install() { "$venv/bin/python" -m pip install -c requirements/constraints.txt "$@"; }

# Runs one operator. It fails if mmcv was built against another torch.
operators_work() {
    "$venv/bin/python" -W ignore - <<'PY' 2>>"$log"
import torch
from mmcv.ops import roi_align

boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
assert roi_align(torch.ones(1, 1, 8, 8), boxes, 2).sum() == 4
PY
}

# Runs pip in the background and prints the compiler's progress every 30 s.
build_mmcv() {
    pip_install -v --no-build-isolation "$@" "$mmcv" >>"$log" 2>&1 &
    local build=$! seconds=0
    while kill -0 "$build" 2>/dev/null; do
        sleep 1
        seconds=$((seconds + 1))
        if ((seconds % 30 == 0)); then
            echo "   ${seconds} s $(grep -oE '\[[0-9]+/[0-9]+\]' "$log" | tail -n 1)"
        fi
    done
    wait "$build" || { tail -n 40 "$log"; echo "mmcv was not built; full output: $log" >&2; exit 1; }
}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    { echo "Python 3.10 or newer is needed, $python is older; set PYTHON=..." >&2; exit 1; }
if [ ! -x "$venv/bin/python" ]; then
    say "Creating $venv with $python"
    "$python" -m venv "$venv"
fi

say 'Installing PyTorch and the build tools'
pip_install -q -r requirements/build.txt

: >"$log"
if ! operators_work; then
    say "Installing $mmcv; its operators are compiled once: about 6 to 9 minutes on 2 cores"
    # mmcv builds CUDA operators if it sees a GPU. This fails without nvcc, so hide the GPU.
    command -v nvcc >/dev/null || export CUDA_VISIBLE_DEVICES=
    export MMCV_WITH_OPS=1
    build_mmcv
    # pip's cache may have a wheel that was built against another torch.
    operators_work || build_mmcv --no-cache-dir --force-reinstall --no-deps
    operators_work || { tail -n 20 "$log"; echo "mmcv's operators do not work, see $log" >&2; exit 1; }
fi

say 'Installing mmdet, mmseg, the test tools and this package'
pip_install -q --no-build-isolation -r "requirements/$stack.txt" -r requirements/dev.txt -e .

# Without libGL, only the headless build of OpenCV can be imported.
"$venv/bin/python" -c 'import cv2' 2>/dev/null ||
    pip_install -q --force-reinstall --no-deps opencv-python-headless

say "The environment is ready in $venv"
