#!/bin/bash
# Trains on several nodes of 8 GPUs, goes on after the time limit, and after whatever ended it:
#
#   sbatch launch/slurm.sh launch/recipes/sky_t1_32b.toml parallel.nodes=2
#
# Words behind the recipe are settings in its place. Give it from the clone, on a file system that all nodes share. The
# number of nodes stands below, or comes before the script: sbatch --nodes 4 launch/slurm.sh ... parallel.nodes=4.
# launch/multi_node.md says what is what.
#SBATCH --job-name=skytrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append

set -u

# Waits for a process. A signal ends `wait` before the process has ended; of one that has been waited for there is no
# status any more (127).
wait_for() {
    wait "$1"
    status=$?
    while [ "$status" -gt 128 ]; do
        wait "$1"
        again=$?
        [ "$again" -eq 127 ] && break
        status=$again
    done
}

# On each node; started by srun below. Torchrun's answer to a signal would be to end its ranks after 30 seconds, saved or
# not: so it ignores this one, and its children, the ranks, are given it.
if [ "${1:-}" = --node ]; then
    shift
    trap '' USR1
    torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" --max-restarts 3 \
        --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" --rdzv-backend c10d --rdzv-endpoint "$HEAD:$PORT" \
        launch/train.py "$@" --resume auto &
    agent=$!
    trap 'pkill -USR1 -P "$agent"' USR1 TERM
    wait_for "$agent"
    exit "$status"
fi

if [ $# -eq 0 ]; then
    echo "usage: sbatch launch/slurm.sh RECIPE.toml [section.key=value ...]" >&2
    exit 2
fi
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
PORT=${PORT:-29500}
export HEAD PORT

# Ten minutes before the limit (--signal above), or by `scancel --batch --signal=TERM JOB`: the ranks save and end after
# the same step, and the job goes back into the queue.
stopping=0
save() {
    stopping=1
    scancel --signal=USR1 "$SLURM_JOB_ID"
}
trap save USR1 TERM

srun --kill-on-bad-exit=1 bash launch/slurm.sh --node "$@" &
wait_for $!

if [ "$stopping" -eq 1 ] && [ "$status" -eq 0 ]; then
    echo "saved before the end of the job's time; job $SLURM_JOB_ID is queued again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
