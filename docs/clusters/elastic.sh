#!/bin/bash
# A run that begins again by itself, on this machine or several, whenever a process of it ends:
#   NODES=2 RENDEZVOUS=first-node:29400 docs/clusters/elastic.sh recipes/full.yaml [--key value ...]
# on each machine; all share the file system. torchrun ends all processes, lets them meet again, and
# each restart goes on from the last checkpoint.
set -euo pipefail

RECIPE=$1
shift
# Each start meets at a place of its own; else it may wait for the addresses of the one before.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec torchrun \
  --nnodes "${NODES:-1}" \
  --nproc_per_node "${PROCESSES_PER_NODE:-gpu}" \
  --max_restarts "${MAX_RESTARTS:-10}" \
  --rdzv_backend c10d \
  --rdzv_endpoint "${RENDEZVOUS:-localhost:0}" \
  --rdzv_id "${RUN_ID:-vlm-agent}" \
  -m vlm_agent.train --config "$RECIPE" --resume_from auto "$@"
