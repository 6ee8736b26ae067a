#!/usr/bin/env bash
# Pack images into shards on many nodes: a job array in which each task builds one part.
#
#   sbatch --array=1-64%16 slurm/build_shards.sh IMAGES SHARDS --size 320
#
# Submit from the folder of the repository. Arguments after the script's name are passed to
# `python -m stargan_dist.shards build` (see its --help). IMAGES and SHARDS must be URLs or folders
# that every node can reach. Array numbers begin at 1. The part that finishes last merges all parts.
#
# A job that was preempted or failed continues where it stopped. To rebuild part 3 of 64:
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
