#!/usr/bin/env bash
# Trains on several GPUs: tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
# On several machines, run it on each: NNODES=2 NODE_RANK=0|1 MASTER_ADDR=HOST [PORT=29500] ...
set -euo pipefail
if (($# < 2)); then
    sed -n '2,3s/^# //p' "$0" >&2
    exit 2
fi
config=$1 gpus=$2
fail() { echo "$(basename "$0"): error: $1" >&2; exit 2; }
[ -f "$config" ] || fail "no such config: $config"
[[ $gpus =~ ^[1-9][0-9]*$ ]] || fail "GPUS must be a positive number, got '$gpus'"
command -v "${PYTHON:-python}" >/dev/null || fail "no ${PYTHON:-python} found: activate the environment or set PYTHON"
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}" --nproc_per_node "$gpus" \
    --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${PORT:-29500}" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "${@:3}"
