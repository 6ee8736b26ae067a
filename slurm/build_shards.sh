#!/usr/bin/env bash
# Pack images into shards on many nodes: an array of jobs, each of which builds a part.
#
#   sbatch --array=1-64%16 slurm/build_shards.sh IMAGES SHARDS --size 320
#
# Submit it from the repository's folder. What follows the script's name goes to
# `python -m stargan_dist.shards build` (see its --help). IMAGES and SHARDS must lie where every
# node can reach them, or be URLs. Array numbers begin at 1. Whichever part is the last merges all.
#
# A job that was preempted or failed goes on where it was. To build part 3 of 64 again:
#   STARGAN_PARTS=64 sbatch --array=3 slurm/build_shards.sh IMAGES SHARDS --size 320
# Account, partition, modules, virtual environment and container: slurm/site.example.sh.
#SBATCH --job-name=stargan_dist-shards
#SBATCH --array=1-8
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append

source "$SLURM_SUBMIT_DIR/slurm/common.sh" || exit
build_shards "$@"
