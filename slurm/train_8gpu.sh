#!/usr/bin/env bash
# Train on one node with eight GPUs, through time limits, preemption and failures.
#
#   sbatch slurm/train_8gpu.sh --config configs/afhq.yaml --run RUN --optim.lr 2e-4
#
# Submit it from the repository's folder. What follows the script's name goes to the training
# (python -m stargan_dist.train --help). RUN must lie where every node can reach it.
#
# Fewer GPUs: sbatch --gpus-per-node=4 --ntasks-per-node=4 slurm/train_8gpu.sh …; one task is one
# process on one GPU, and batch_size must be a multiple of their number. All other options of
# sbatch work, too (--time, --cpus-per-task, --mem-per-cpu, --constraint …), and win over those
# below; give SBATCH_SIGNAL in the environment instead of --signal. Account, partition, modules,
# virtual environment and container: slurm/site.example.sh.
#
# Before the time limit, or when the job is preempted, all processes save at one step and the job
# requeues itself: same job id, same folder. `scancel JOB` saves, too, and ends the job. A failure
# requeues it, three times at most, if a checkpoint was saved since the job last started.
# docs/slurm.md tells all of it, and what to do when something does not work.
#
# slurm-JOB.out tells what rank 0 tells; slurm-JOB/start_N/rank_R.log is the log of each process.
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
