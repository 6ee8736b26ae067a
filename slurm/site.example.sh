# shellcheck shell=bash
# What is particular to a cluster. Copy it to slurm/site.sh and uncomment what is needed.
#
# The jobs read slurm/site.sh (or the file that STARGAN_SITE names) on their first node. What
# sbatch itself has to know, the SBATCH_… below, it takes from the shell that submits: run
# `. slurm/site.sh` there first, or export them in ~/.bashrc. Any of these may instead be set in
# the environment of a single sbatch: STARGAN_VENV=… sbatch slurm/train_8gpu.sh …

# Read by sbatch (man sbatch, INPUT ENVIRONMENT VARIABLES). Options on its command line win.
# export SBATCH_ACCOUNT=project
# export SBATCH_PARTITION=gpu
# export SBATCH_QOS=normal
# export SBATCH_CONSTRAINT=h100
# export SBATCH_TIMELIMIT=12:00:00
# export SBATCH_SIGNAL=B:USR1@600        # begin to save 600 seconds before the end; unless set: 300

# Where Python is. Unless set: .venv in the folder that the job was submitted from, if it is there.
# export STARGAN_VENV=$HOME/venvs/stargan_dist
# export STARGAN_MODULES="python/3.11 cuda/12.4"          # loaded first, by `module load`

# A container, in which `python` finds stargan_dist. Words are split at blanks.
# export STARGAN_COMMAND="apptainer exec --nv --bind /data $HOME/stargan_dist.sif"   # Apptainer
# export STARGAN_SRUN="--container-image=$HOME/stargan_dist.sqsh --container-mounts=/data:/data,$PWD:$PWD --container-workdir=$PWD"   # Pyxis
# STARGAN_SRUN holds any options of srun, such as --cpu-bind=cores.

# Where the logs of all ranks go, a folder a job. Unless set: slurm-JOB beside slurm-JOB.out.
# export STARGAN_LOGS=$HOME/logs
# How many failures of a job are followed by another start. Unless set: 3.
# export STARGAN_MAX_FAILURES=3

# The network. Unless set, the processes talk through the interface that leads to the first node;
# data between GPUs goes where NCCL finds it best.
# export GLOO_SOCKET_IFNAME=ib0
# export NCCL_SOCKET_IFNAME=ib0

# Caches of weights and shards, on a disk of the node.
# export TORCH_HOME=/scratch/$USER/torch
