# shellcheck shell=bash
# Functions shared by the scripts of this folder. They source this file in the batch shell of a job,
# which runs on the job's first node. One srun starts all ranks, one task per rank
# (stargan_dist/launch/slurm_task.py).

# Exit codes of the training.
USER_ERROR=2     # the user has to fix something
OUTSIDE_FAULT=74 # storage, a disk or a machine failed; the same command may succeed
STOPPED=75       # stopped by a signal with the state saved; the same command resumes

# Last line in the log of a rank that was stopped. The task itself exits with 0, because Slurm would
# take the exit code 75 for a failure.
STOPPED_LINE="exit code $STOPPED"
RESEND_SECONDS=5
RETRY_SECONDS=10
CONTROLLER_TRIES=12
BESIDE_SECONDS=120
TIMED_OUT=124 # exit code of a command beside the ranks that took longer

# For one task of a job array, Slurm would take its bare job id for the whole array.
JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
JOB=${JOB:-$SLURM_JOB_ID}

TRAIN=stargan_dist.train     # module of the ranks
STATUS=(stargan_dist.status) # module that prints the step of the newest checkpoint, and its options

STEP_UNKNOWN=    # set when the check of the saved step took too long
SAVE_REQUESTED=  # set when Slurm or a person has requested by USR1 to save and stop
IGNORE_SIGNALS=: # first command of every task
trap "" USR1

log() { echo "[$(date +%H:%M:%S) job $JOB] $*"; }

user_error() {
  log "error: $*" >&2
  exit "$USER_ERROR"
}

# Print a field of Slurm's record of this job: State, TimeLimit or Requeue. Retries, because the
# controller may be busy or restarting. (`scontrol show job` prints everything, and a job's name may
# look like any other field.)
job_field() {
  local value try
  for ((try = 0; try < CONTROLLER_TRIES; try++)); do
    value=$(squeue --noheader --states=all --jobs="$JOB" --Format="$1:40") && break
    sleep "$RETRY_SECONDS"
  done
  echo "${value%% *}"
}

# Set up the environment as described in slurm/site.example.sh.
set_up() {
  local site=${STARGAN_SITE:-$SLURM_SUBMIT_DIR/slurm/site.sh}
  if [[ -e $site ]]; then
    # shellcheck source=slurm/site.example.sh
    source "$site"
  elif [[ ${STARGAN_SITE:-} ]]; then
    user_error "STARGAN_SITE is $site, which does not exist"
  fi
  load_modules
  set +e # a site file may contain `set -e`, and an interrupted `wait` is not a failure
  local venv=${STARGAN_VENV:-$SLURM_SUBMIT_DIR/.venv}
  [[ ! -d $venv/bin ]] || export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv"
  read -ra SRUN <<<"${STARGAN_SRUN:-}"
  read -ra COMMAND <<<"${STARGAN_COMMAND:-}"
  # Otherwise srun exports what `sbatch --export` named, and nothing that is set here.
  export SLURM_EXPORT_ENV=ALL
  # Since Slurm 22.05, srun does not take this value from the job itself.
  export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
  # A rank has only a few cores, but libraries would start one thread per core of the node.
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONUNBUFFERED=1
  [[ ${STARGAN_SRUN:-}${STARGAN_COMMAND:-} ]] || command -v python >/dev/null ||
    user_error "no python on $SLURMD_NODENAME: set STARGAN_VENV, STARGAN_MODULES or a container" \
      "(slurm/site.example.sh)"
}

load_modules() {
  [[ ${STARGAN_MODULES:-} ]] || return 0
  # Jobs of users with another login shell do not have this function.
  type module >/dev/null 2>&1 || source /etc/profile
  # shellcheck disable=SC2086  # a list of words
  module load $STARGAN_MODULES || user_error "cannot load the modules in STARGAN_MODULES:" \
    "$STARGAN_MODULES"
}

# Set the addresses of the first two nodes and the port where the ranks meet. The addresses are
# those by which Slurm reaches the nodes: a node's own host name may resolve to 127.0.1.1. The port
# derives from the job id, so that two jobs on a node use different ports.
set_rendezvous() {
  local nodes name address
  mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  STARGAN_HOSTS=
  for name in "${nodes[@]:0:2}"; do
    address=$(scontrol show node -o "$name" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
    STARGAN_HOSTS+="${address:-$name} "
  done
  MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
  while (: <"/dev/tcp/127.0.0.1/$MASTER_PORT") 2>/dev/null; do
    MASTER_PORT=$((10000 + RANDOM % 20000)) # not the next one, which may be another job's
  done
  export STARGAN_HOSTS MASTER_PORT
}

# Run a short command once on each of $1 nodes, beside the ranks and without GPUs.
run_beside() {
  local count=$1
  shift
  env -u SLURM_GPUS -u SLURM_GPUS_PER_NODE -u SLURM_GPUS_PER_TASK timeout "$BESIDE_SECONDS" \
    srun "${SRUN[@]}" --overlap --nodes="$count" --ntasks="$count" --ntasks-per-node=1 \
    bash -c "$IGNORE_SIGNALS"'; exec "$@"' beside "$@"
}

# Run a module as every rank and wait until all have ended, whatever signals arrive. Sets CODE to
# the exit code of the rank that failed first, or to STOPPED.
run_ranks() {
  # shellcheck disable=SC2016  # expanded by the shell of the task
  local rank='"$@" && exit; code=$?; ((code == '$STOPPED')) || exit "$code"'
  set_rendezvous
  log "$SLURM_JOB_NODELIST: $SLURM_NTASKS process(es), logs in $START_LOGS"
  srun "${SRUN[@]}" --kill-on-bad-exit=1 --output="$START_LOGS/rank_%t.log" \
    bash -c "$IGNORE_SIGNALS; $rank; echo '$STOPPED_LINE'" rank \
    "${COMMAND[@]}" python -m stargan_dist.launch.slurm_task "$@" 2>"$START_LOGS/srun.log" &
  follow_step $!
  ! grep -qx "$STOPPED_LINE" "$START_LOGS/rank_0.log" || CODE=$STOPPED
  ((CODE == 0 || CODE == STOPPED)) || report_first_failure
}

# Create START_LOGS, the folder with the logs of this start of the job. Set FAILURES, a file with one
# line per failure of the job.
open_logs() {
  local job_logs=${STARGAN_LOGS:-$SLURM_SUBMIT_DIR}/slurm-$SLURM_JOB_ID
  START_LOGS=$job_logs/start_${SLURM_RESTART_COUNT:-0}
  FAILURES=$job_logs/failures
  { mkdir -p "$START_LOGS" && : >"$START_LOGS/rank_0.log" && : >"$START_LOGS/srun.log"; } ||
    user_error "cannot write logs to $START_LOGS (STARGAN_LOGS)"
  [[ ${SLURM_RESTART_COUNT:-} ]] || : >"$FAILURES" # a cluster may reuse job ids
}

# Show the output of a step until it ends. After a request to save, signal the ranks repeatedly: a
# rank that is still starting ignores the signal.
follow_step() {
  local step=$1 tail_pid
  (trap "" TERM && exec tail -q -n +1 -f --pid="$step" "$START_LOGS"/{rank_0,srun}.log) &
  tail_pid=$!
  while kill -0 "$step" 2>/dev/null; do
    [[ ! $SAVE_REQUESTED ]] || scancel --quiet --signal=USR1 "$JOB"
    sleep "$RESEND_SECONDS" &
    wait -n "$!" "$step"
  done
  wait "$step"
  CODE=$?
  wait "$tail_pid"
}

# Log which rank failed first, and set CODE to its exit code. srun reports tasks in the order in
# which they end.
report_first_failure() {
  local message rank
  message=$(grep -m 1 -E 'error: .*: tasks? [0-9].*:' "$START_LOGS/srun.log") || return
  [[ $message =~ error:\ (.*):\ tasks?\ ([0-9]+)[^:]*:\ (.*) ]] || return
  rank=${BASH_REMATCH[2]} message="${BASH_REMATCH[1]}: ${BASH_REMATCH[3]}"
  [[ ! $message =~ exit\ code\ ([0-9]+) ]] || CODE=${BASH_REMATCH[1]}
  ((CODE <= 128 || CODE > 192)) || message+=" (signal $(kill -l "$CODE"))"
  log "first failure: rank $rank on $message"
  ((rank == 0)) || tail -v -n 20 "$START_LOGS/rank_$rank.log"
}

# Convert a duration of the scheduler, [D-][HH:]MM:SS, to seconds.
seconds_of() {
  local days=0 hours minutes seconds clock=$1
  [[ $clock != *-* ]] || { days=${clock%%-*} clock=${clock#*-}; }
  [[ $clock == *:*:* ]] || clock=0:$clock
  IFS=: read -r hours minutes seconds <<<"$clock"
  echo $((((10#$days * 24 + 10#$hours) * 60 + 10#$minutes) * 60 + 10#$seconds))
}

check_time_limit() {
  local limit signal=${SBATCH_SIGNAL:-B:USR1@300}
  [[ $signal =~ ^B:(SIG)?USR1@([0-9]+)$ ]] ||
    user_error "SBATCH_SIGNAL is $signal, not B:USR1@SECONDS"
  local saving=${BASH_REMATCH[2]}
  limit=$(job_field TimeLimit)
  [[ $limit == *:* ]] || return 0 # UNLIMITED
  (($(seconds_of "$limit") >= 2 * saving)) ||
    user_error "the time limit, $limit, leaves less time for training than for saving (the last" \
      "$saving s, SBATCH_SIGNAL); request more by sbatch --time or SBATCH_TIMELIMIT"
}

# Print the step of the newest checkpoint. Also detects mistakes in the command before ranks start.
saved_step() {
  local output
  output=$(run_beside 1 "${COMMAND[@]}" python -m "${STATUS[@]}" "$@") || return
  # A container may print lines of its own.
  [[ $output =~ (^|$'\n')([0-9]+)\ of\ [0-9]+\ steps\ saved ]] && echo "${BASH_REMATCH[2]}"
}

train() {
  local before after
  trap 'SAVE_REQUESTED=yes' USR1
  trap : TERM # the ranks receive it, too
  # Signals reach every process of a step. They must not end processes that do not handle them.
  IGNORE_SIGNALS='trap "" USR1 TERM'
  set_up
  check_time_limit
  open_logs
  before=$(saved_step "$@")
  CODE=$?
  ((CODE != TIMED_OUT)) || STEP_UNKNOWN=yes
  ((CODE == 0)) || handle_failure 0 0
  log "$before steps are saved"
  run_ranks "$TRAIN" "$@"
  ((CODE)) || exit 0
  exit_if_slurm_decided
  after=$(saved_step "$@") || { (($? != TIMED_OUT)) || STEP_UNKNOWN=yes; after=$before; }
  ((CODE != STOPPED || after <= before)) || requeue "stopped and saved at step $after"
  handle_failure "$before" "$after"
}

# Train the pair of domains whose number is that of this task of the array.
train_pair() {
  [[ ${SLURM_ARRAY_JOB_ID:-} ]] ||
    user_error "this is no job array: sbatch --array=0-N, where N is the last number that" \
      "python -m stargan_dist.pairs --list prints"
  TRAIN=stargan_dist.pairs STATUS=(stargan_dist.pairs --list)
  train --index "$SLURM_ARRAY_TASK_ID" "$@"
}

# Exit if Slurm has already decided about this job: it was cancelled, or it is being requeued.
exit_if_slurm_decided() {
  local state outcome="failed with exit code $CODE"
  state=$(job_field State)
  [[ ! $state =~ ^(RUNNING|SIGNALING|RESIZING)?$ ]] || return 0
  ((CODE != STOPPED)) || outcome="stopped and saved"
  log "$outcome; not requeued by this script: the job's state in Slurm is $state"
  exit "$CODE"
}

# Requeue this job and exit. $1: the reason.
requeue() {
  local try tries=$CONTROLLER_TRIES
  [[ $(job_field Requeue) != 0 ]] || tries=0
  log "$1; requeueing the job"
  for ((try = 0; try < tries; try++)); do
    # scontrol ignores TERM here, because a requeue terminates every process of the batch step.
    (trap "" TERM && exec scontrol requeue "$JOB") && exit 0
    sleep "$RETRY_SECONDS"
    exit_if_slurm_decided >/dev/null # the job was requeued, but the answer was lost
  done
  log "the job may not be requeued; run the same sbatch command again to resume"
  exit "$CODE"
}

# After a failure, or a stop without progress: requeue the job if that may help, but not forever.
handle_failure() {
  local before=$1 after=$2 counted=yes
  local failure="$START_LOGS: exit code $CODE, from step $before to $after"
  { echo "$failure" >>"$FAILURES"; } 2>/dev/null || counted= # a full disk
  if [[ $counted ]] && (($(wc -l <"$FAILURES") > ${STARGAN_MAX_FAILURES:-3})); then
    log "failed too often: $(cat "$FAILURES")"
  elif [[ ! $counted ]] && ((after <= before)); then # it could fail so forever
    log "failed, and $FAILURES cannot be written, which counts failures: not requeued"
  elif [[ $STEP_UNKNOWN ]]; then
    requeue "the check of the saved step took more than $BESIDE_SECONDS s"
  elif ((after > before)); then
    requeue "failed, but the run advanced from step $before to $after"
  elif ((CODE == STOPPED)); then
    requeue "stopped before it completed another step"
  elif ((CODE == OUTSIDE_FAULT)); then
    requeue "failed by a fault of storage, a disk or a machine that may pass"
  elif ((CODE != USER_ERROR)) && ! nodes_answer; then
    requeue "failed, and a node of $SLURM_JOB_NODELIST does not answer"
  else
    log "failed, and no checkpoint was saved since this start (step $before): not requeued"
  fi
  exit "$CODE"
}

nodes_answer() { run_beside "$SLURM_NNODES" true; }

evaluate() {
  set_up
  open_logs
  run_ranks stargan_dist.evaluate "$@"
  exit "$CODE"
}

build_shards() {
  local parts=${STARGAN_PARTS:-$SLURM_ARRAY_TASK_MAX}
  set_up
  [[ ${STARGAN_PARTS:-} || $SLURM_ARRAY_TASK_MIN-$parts == "1-$SLURM_ARRAY_TASK_COUNT" ]] ||
    user_error "this is a part of a job array; set the total number of parts: STARGAN_PARTS=…"
  exec srun "${SRUN[@]}" "${COMMAND[@]}" python -m stargan_dist.shards build \
    --part "$SLURM_ARRAY_TASK_ID/$parts" --merge --processes "$SRUN_CPUS_PER_TASK" "$@"
}
