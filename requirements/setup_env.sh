#!/usr/bin/env bash
# Creates a virtual environment for development, with mmdet, mmseg and mmcv's compiled operators.
# Usage: requirements/setup_env.sh VENV [STACK [CUDA_ARCHS]]
# STACK is openmmlab (default) or onedl. Each needs its own VENV: their packages conflict.
# CUDA_ARCHS are the cards' compute capabilities, such as 8.6,9.0: mmcv then gets CUDA operators for
# these cards. Without CUDA_ARCHS, it gets those for the CPU.
# PYTHON sets the interpreter (default: python3.11).
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
stack=${2:-openmmlab}
archs=${3:-}
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
log=$venv/mmcv-build.log
export PIP_DISABLE_PIP_VERSION_CHECK=1
case $stack in
    openmmlab) mmcv=mmcv ;;
    onedl) mmcv=onedl-mmcv ;;
    *) echo "STACK must be openmmlab or onedl, not $stack" >&2; exit 1 ;;
esac

say() { printf '\n== %s\n' "$*"; }
fail() { echo "$*" >&2; exit 1; }
pip_install() { "$venv/bin/python" -m pip install -c requirements/constraints.txt "$@"; }

# Runs one operator, on every card too. It fails if mmcv was built against another torch, or not
# for these cards. Without a card, the list of the library's code must do.
operators_work() {
    "$venv/bin/python" -W ignore - "$archs" <<'PY' 2>>"$log"
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import torch
from mmcv.ops import roi_align

boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
archs = [arch for arch in sys.argv[1].split(',') if arch]
cards = [f'cuda:{i}' for i in range(torch.cuda.device_count())] if archs else []
for device in ('cpu', *cards):
    assert roi_align(torch.ones(1, 1, 8, 8, device=device), boxes.to(device), 2).sum() == 4, device
if archs:
    import triton

    program = Path(triton.__file__).with_name('backends') / 'nvidia/bin/cuobjdump'
    library = import_module('mmcv._ext').__file__
    code = subprocess.run([program, '--list-elf', library], capture_output=True, text=True).stdout
    lacking = [arch for arch in archs if f'.sm_{arch.replace(".", "")}.' not in code]
    assert not lacking, f'no code for {lacking}'
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
    wait "$build" || { tail -n 40 "$log"; fail "mmcv was not built; full output: $log"; }
}

# Checks that torch has CUDA and works with this machine's driver, if it has one.
check_torch() {
    cuda=$("$venv/bin/python" -c 'import torch; print(torch.version.cuda or "")')
    [ -n "$cuda" ] || fail "pip installed a torch without CUDA in $venv: let pip take the default" \
        "build (pip config list shows what it prefers), remove $venv and try again, or use DEVICE=cpu"
    [ -z "$(requirements/find_cards.sh 2>/dev/null)" ] ||
        "$venv/bin/python" -W ignore -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
        fail "torch finds no card: driver $(nvidia-smi --query-gpu=driver_version --format=csv,noheader |
            head -n 1) may be too old for CUDA $cuda; update it, or use DEVICE=cpu"
}

# Sets CUDA_HOME to a toolkit of torch's CUDA version. Where the machine has none, its packages are
# installed, and linked in the layout that torch's compiler wants.
find_toolkit() {
    local nvcc root packages library
    nvcc=$(readlink -f "$(command -v nvcc || true)" || true)
    CUDA_HOME=${CUDA_HOME:-${nvcc%/bin/nvcc}}
    if ! "$CUDA_HOME/bin/nvcc" --version 2>/dev/null | grep -q "release $cuda," ||
        [ ! -e "$CUDA_HOME/include/cublas_v2.h" ]; then
        say "Installing nvcc $cuda"
        pip_install -q "cuda-toolkit[nvcc,cccl]==$cuda.*"
        root=$(cd "$venv" && pwd)
        packages=$(echo "$root"/lib/python3*/site-packages/nvidia/"cu${cuda%%.*}")
        CUDA_HOME=$root/cuda
        rm -rf "$CUDA_HOME"
        mkdir -p "$CUDA_HOME/lib64"
        ln -s "$packages"/{bin,include,nvvm,lib} "$CUDA_HOME"
        for library in "$packages"/lib/*; do
            ln -sf "$library" "$CUDA_HOME/lib64"
            [[ $library != *.so.* ]] || ln -sf "$library" \
                "$CUDA_HOME/lib64/$(basename "${library%%.so.*}").so"
        done
    fi
    export CUDA_HOME
    for arch in ${archs//,/ }; do
        "$CUDA_HOME/bin/nvcc" --list-gpu-arch | grep -qx "compute_${arch/./}" ||
            fail "CUDA $cuda cannot compile for compute capability $arch: the card is too old or" \
                'too new for it; use DEVICE=cpu'
    done
}

[[ $archs =~ ^([0-9]+\.[0-9](,[0-9]+\.[0-9])*)?$ ]] ||
    fail "CUDA_ARCHS must be compute capabilities such as 8.6,9.0, not $archs"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "Python 3.10 or newer is needed, $python is older; set PYTHON=..."
if [ ! -x "$venv/bin/python" ]; then
    say "Creating $venv with $python"
    "$python" -m venv "$venv"
fi

say 'Installing PyTorch and the build tools'
pip_install -q -r requirements/build.txt
[ -z "$archs" ] || check_torch

: >"$log"
if ! operators_work; then
    rm -f "$venv"/ready* # for other cards
    export MMCV_WITH_OPS=1
    if [ -n "$archs" ]; then
        find_toolkit
        say "Installing $mmcv; its CUDA operators are compiled once: 20 to 40 minutes on 2 cores"
        # No cache: its wheels tell neither torch's version nor the cards that they were built for.
        export FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=${archs//,/;}
        build_mmcv --no-cache-dir --force-reinstall --no-deps
        pip_install -q "$mmcv" # what it depends on
    else
        say "Installing $mmcv; its operators are compiled once: about 6 to 9 minutes on 2 cores"
        # mmcv builds CUDA operators if it sees a GPU.
        export CUDA_VISIBLE_DEVICES=
        build_mmcv
        # pip's cache may have a wheel that was built against another torch.
        operators_work || build_mmcv --no-cache-dir --force-reinstall --no-deps
    fi
    operators_work || { tail -n 20 "$log"; fail "mmcv's operators do not work, see $log"; }
fi

say 'Installing mmdet, mmseg, the test tools and this package'
pip_install -q --no-build-isolation -r "requirements/$stack.txt" -r requirements/dev.txt -e .

# Without libGL, only the headless build of OpenCV can be imported.
"$venv/bin/python" -c 'import cv2' 2>/dev/null ||
    pip_install -q --force-reinstall --no-deps opencv-python-headless

say "The environment is ready in $venv"
