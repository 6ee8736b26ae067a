#!/usr/bin/env bash
# Measure FID, KID and LPIPS of a run on all GPUs of a node.
#
#   sbatch slurm/evaluate.sh --run RUN --checkpoint best --repeat 3
#
# Submit it from the repository's folder. What follows the script's name goes to the evaluation
# (python -m stargan_dist.evaluate --help); the table ends up in slurm-JOB.out and RUN/evaluation.
# Options of sbatch win over those below; more nodes: sbatch --nodes=2. Account, partition,
# modules, virtual environment and container: slurm/site.example.sh.
#
# What was measured is kept task by task. Preempted, the job is requeued by Slurm and measures the
# rest; after a time limit the same command does.
#SBATCH --job-name=stargan_dist-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append

source "$SLURM_SUBMIT_DIR/slurm/common.sh" || exit
evaluate "$@"
