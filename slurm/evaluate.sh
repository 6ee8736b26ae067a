#!/usr/bin/env bash
# Compute FID, KID and LPIPS of a run on all GPUs of a node.
#
#   sbatch slurm/evaluate.sh --run RUN --checkpoint best --repeat 3
#
# Submit from the folder of the repository. Arguments after the script's name are passed to
# `python -m stargan_dist.evaluate` (see its --help). The table is written to slurm-JOB.out, the
# results to RUN/evaluation. Options of sbatch override those below; more nodes: sbatch --nodes=2.
# Account, partition, modules, virtual environment and container: slurm/site.example.sh.
#
# Results are kept task by task. When the job is preempted, Slurm requeues it, and it computes the
# remaining tasks. After a time limit, submit the same command again.
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
