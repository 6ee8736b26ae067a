# shellcheck shell=bash
# Settings of a cluster. Copy this file to slurm/site.sh and uncomment what you need.
#
# Jobs read slurm/site.sh (or the file in STARGAN_SITE) on their first node. The SBATCH_… variables
# below are options of sbatch, which reads them from the shell that submits: run `. slurm/site.sh`
# there first, or export them in ~/.bashrc. Any variable may instead be set in the environment of a
# single sbatch: STARGAN_VENV=… sbatch slurm/train_8gpu.sh …

# Read by sbatch (man sbatch, INPUT ENVIRONMENT VARIABLES). Its command-line options override them.
# export SBATCH_ACCOUNT=project
# export SBATCH_PARTITION=gpu
# export SBATCH_QOS=normal
# export SBATCH_CONSTRAINT=h100
# export SBATCH_TIMELIMIT=12:00:00
# export SBATCH_SIGNAL=B:USR1@600        # begin to save 600 seconds before the end; default: 300

# Python. Default: .venv in the folder from which the job was submitted, if it exists.
# export STARGAN_VENV=$HOME/venvs/stargan_dist
# export STARGAN_MODULES="python/3.11 cuda/12.4"          # loaded first, by `module load`

# A container whose `python` can import stargan_dist. The values are split at blanks.
# export STARGAN_COMMAND="apptainer exec --nv --bind /data $HOME/stargan_dist.sif"   # Apptainer
# export STARGAN_SRUN="--container-image=$HOME/stargan_dist.sqsh --container-mounts=/data:/data,$PWD:$PWD --container-workdir=$PWD"   # Pyxis
# STARGAN_SRUN may hold any options of srun, such as --cpu-bind=cores.

# Folder for the logs of all ranks, one subfolder per job. Default: slurm-JOB beside slurm-JOB.out.
# export STARGAN_LOGS=$HOME/logs
# Number of failures of a job after which it is started again. Default: 3.
# export STARGAN_MAX_FAILURES=3

# Network. Default: processes communicate through the interface that leads to the first node, and
# NCCL selects the best path for data between GPUs itself.
# export GLOO_SOCKET_IFNAME=ib0
# export NCCL_SOCKET_IFNAME=ib0

# Caches of weights and shards, on a local disk of the node.
# export TORCH_HOME=/scratch/$USER/torch
