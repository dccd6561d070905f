#!/usr/bin/env bash
# Trains under Slurm: tools/slurm_train.sh PARTITION CONFIG GPUS_PER_NODE [arguments of tools/train.py]
# Environment: NNODES (default 1), CPUS_PER_TASK (16), PORT (29500), SRUN_ARGS.
# Slurm starts tools/dist_train.sh once per machine; the first machine is the master.
set -euo pipefail
if (($# < 3)); then
    sed -n '2,3s/^# //p' "$0" >&2
    exit 2
fi
partition=$1 gpus=$3
fail() { echo "$(basename "$0"): error: $1" >&2; exit 2; }
[ -f "$2" ] || fail "no such config: $2"
[[ $gpus =~ ^[1-9][0-9]*$ ]] || fail "GPUS_PER_NODE must be a positive number, got '$gpus'"
command -v srun >/dev/null || fail 'no srun found: run this on a machine with Slurm'
export NNODES=${NNODES:-1} DIST_TRAIN=$(dirname "$0")/dist_train.sh
# shellcheck disable=SC2016,SC2086
exec srun --partition "$partition" --job-name "$(basename "$2" .py)" \
    --nodes "$NNODES" --ntasks-per-node 1 --gpus-per-node "$gpus" \
    --cpus-per-task "${CPUS_PER_TASK:-16}" ${SRUN_ARGS:-} \
    bash -c 'NODE_RANK=$SLURM_NODEID \
        MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) \
        exec "$DIST_TRAIN" "$@"' dist_train "${@:2}"
