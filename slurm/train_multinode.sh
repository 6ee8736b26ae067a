#!/usr/bin/env bash
# Train on several nodes with eight GPUs each: slurm/train_8gpu.sh for more than one node.
#
#   sbatch --nodes=4 slurm/train_multinode.sh --config configs/afhq.yaml --run RUN --batch_size 32
#
# The comments in slurm/train_8gpu.sh apply. Default: two nodes. batch_size is the global batch of
# all processes and must be a multiple of nodes × 8. Addresses, port and ranks come from Slurm. NCCL
# selects its network interface itself (docs/slurm.md, NCCL_SOCKET_IFNAME, if that fails).
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
