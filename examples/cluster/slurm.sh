#!/bin/bash
# A search on all nodes of a Slurm job: sbatch slurm.sh. Killed, requeued or out of time: sbatch slurm.sh again goes on.
#SBATCH --job-name=autocomp
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --exclusive
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --output=autocomp-%j.log
set -euo pipefail

shared=/shared # a folder that all nodes see: the virtual environment, and the run
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
export RAY_USAGE_STATS_ENABLED=0

head="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"

source "$shared/venv/bin/activate"
# Starts Ray on every node, the command on the first one, and stops Ray when the command ends.
srun ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus "$SLURM_CPUS_PER_TASK" -- \
  autocomp search --budget 4MB --cluster auto --out "$shared/runs/resnet18"
