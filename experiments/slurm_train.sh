#!/usr/bin/env bash
# Train on the GPUs of one or more nodes of a SLURM cluster, from the repository's folder:
#   sbatch --nodes 2 --gpus-per-node 4 --cpus-per-task 16 --time 24:00:00 \
#       experiments/slurm_train.sh train_mnist.py --data_path ... --logdir ... -b 32
# Two minutes before its time is up the job saves its state and goes back into the queue, as SLURM puts it there when
# it is preempted. A cancelled job saves its state and ends.
#SBATCH --job-name needles
#SBATCH --ntasks-per-node 1
#SBATCH --requeue
#SBATCH --open-mode append
#SBATCH --signal B:USR1@120
set -euo pipefail

queue_again() {
    scancel --signal TERM "$SLURM_JOB_ID.0" # torchrun passes it on and waits for 30 s
    wait "$run" || true
    scontrol requeue "$SLURM_JOB_ID"
}
trap queue_again USR1

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --kill-on-bad-exit=1 --cpus-per-task "${SLURM_CPUS_PER_TASK:-1}" "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "$SLURM_NNODES" --nproc_per_node "${SLURM_GPUS_ON_NODE:-${PROCESSES:-1}}" \
    --rdzv_backend c10d --rdzv_endpoint "$first:$((20000 + SLURM_JOB_ID % 10000))" --rdzv_id "$SLURM_JOB_ID" "$@" &
run=$!
wait "$run"
