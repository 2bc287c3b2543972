#!/bin/bash
#SBATCH --job-name=vlm-agent
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=vlm-agent-%j.log
# One task per node, which starts a process per GPU. Submit it in the repository, on a file system
# that all nodes share:
#   sbatch docs/clusters/slurm.sh recipes/full.yaml [--key value ...]
# A job that is put back into the queue goes on from its last checkpoint.
set -euo pipefail

RECIPE=$1
shift
CONFIG=${CONFIG:-accelerate_configs/multi_node.yaml}
PROCESSES_PER_NODE=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-8}}
read -r FIRST_NODE < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
PORT=$((20000 + SLURM_JOB_ID % 20000))

# In single quotes: each node has a SLURM_NODEID of its own.
export RECIPE CONFIG PROCESSES_PER_NODE FIRST_NODE PORT
srun --kill-on-bad-exit=1 bash -c '
  exec accelerate launch --config_file "$CONFIG" \
    --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" \
    --num_processes $((SLURM_NNODES * PROCESSES_PER_NODE)) \
    --main_process_ip "$FIRST_NODE" --main_process_port "$PORT" \
    -m vlm_agent.train --config "$RECIPE" --resume_from auto "$@"' vlm-agent "$@"
