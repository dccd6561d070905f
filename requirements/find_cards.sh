#!/usr/bin/env bash
# Prints the compute capabilities of this machine's NVIDIA cards, such as 8.6,9.0, and nothing
# without a card. It asks nvidia-smi, because only a driver that works can answer.
set -euo pipefail
[ -n "${CUDA_VISIBLE_DEVICES-all}" ] || exit 0 # the user hides the cards
if command -v nvidia-smi >/dev/null; then
    answer=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>&1) || true
elif [ -e /proc/driver/nvidia/version ]; then
    answer='there is a driver, but no nvidia-smi on PATH'
else
    exit 0
fi
if [ -z "$answer" ] || grep -qvE '^[0-9]+\.[0-9]+$' <<<"$answer"; then
    echo "The CPU is used, because nvidia-smi lists no card: ${answer%%$'\n'*}" >&2
    exit 0
fi
sort -uV <<<"$answer" | paste -sd, -
