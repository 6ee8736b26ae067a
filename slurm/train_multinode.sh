#!/usr/bin/env bash
# Train on several nodes of eight GPUs: slurm/train_8gpu.sh with more than one node.
#
#   sbatch --nodes=4 slurm/train_multinode.sh --config configs/afhq.yaml --run RUN --batch_size 32
#
# All that slurm/train_8gpu.sh says holds. Two nodes unless --nodes says otherwise. batch_size is
# the batch of all processes together, a multiple of nodes × 8. Addresses, port and ranks come from
# Slurm; NCCL finds its own way (docs/slurm.md: NCCL_SOCKET_IFNAME, if it does not).
#SBATCH --job-name=stargan_dist
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

source "$SLURM_SUBMIT_DIR/slurm/common.sh" || exit
train "$@"
