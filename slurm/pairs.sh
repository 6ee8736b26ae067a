#!/usr/bin/env bash
# Train a method between two domains on all pairs of K domains: a job array in which each task trains
# one pair, on a GPU.
#
#   python -m stargan_dist.pairs --config configs/comparison/cyclegan_afhq.yaml --run SET --list
#   sbatch --array=0-2 slurm/pairs.sh --config configs/comparison/cyclegan_afhq.yaml --run SET
#
# Submit from the folder of the repository. K domains have K(K - 1)/2 pairs; the first command prints
# them with their numbers, and how far each is. Array numbers begin at 0; --array=0-44%8 trains eight
# of 45 at a time. Arguments after the script's name are passed to `python -m stargan_dist.train`,
# which trains in SET/CAT-DOG and so on. SET must be reachable from every node.
#
# Each task saves, requeues itself and resumes as the jobs of slurm/train_8gpu.sh do, whose comments
# apply. More GPUs for each pair: sbatch --gpus-per-node=4 --ntasks-per-node=4 …, with a batch_size
# that is a multiple of twice as many. To train pair 3 alone again: sbatch --array=3 ….
# To evaluate all pairs: sbatch slurm/evaluate.sh --run SET
#SBATCH --job-name=stargan_dist-pairs
#SBATCH --array=0-2
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

source "$SLURM_SUBMIT_DIR/slurm/common.sh" || exit
train_pair "$@"
