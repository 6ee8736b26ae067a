#!/usr/bin/env bash
# Train on one node with eight GPUs, through time limits, preemption and failures.
#
#   sbatch slurm/train_8gpu.sh --config configs/afhq.yaml --run RUN --optim.lr 2e-4
#
# Submit from the folder of the repository. Arguments after the script's name are passed to
# `python -m stargan_dist.train` (see its --help). RUN must be reachable from every node.
#
# Fewer GPUs: sbatch --gpus-per-node=4 --ntasks-per-node=4 slurm/train_8gpu.sh …. One task is one
# process on one GPU, and batch_size must be a multiple of the number of tasks. All other options of
# sbatch work, too (--time, --cpus-per-task, --mem-per-cpu, --constraint …), and override those
# below. Exception: set SBATCH_SIGNAL in the environment instead of --signal. Account, partition,
# modules, virtual environment and container: slurm/site.example.sh.
#
# Before the time limit, and when the job is preempted, all processes save at the same step and the
# job requeues itself: same job id, same folder. `scancel JOB` also saves, and ends the job. After a
# failure the job is requeued, up to three times, if a checkpoint was saved since its last start.
# docs/slurm.md describes the details and what to do when something does not work.
#
# slurm-JOB.out contains the output of rank 0; slurm-JOB/start_N/rank_R.log is the log of each rank.
#SBATCH --job-name=stargan_dist
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

source "$SLURM_SUBMIT_DIR/slurm/common.sh" || exit
train "$@"
