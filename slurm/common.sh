# shellcheck shell=bash
# What the scripts of this folder share; they source it in the batch shell of a job, which runs on
# the job's first node. Every rank is a task of one srun (stargan_dist/slurm.py).

# Exit codes of the training.
MISTAKE=2  # a person has to mend something
STOPPED=75 # saved because a signal came; the same command goes on

# What a rank that was stopped writes last. Slurm would take its exit code for a failure's.
MARK="exit code $STOPPED"
RESEND_SECONDS=5
RETRY_SECONDS=10
CONTROLLER_TRIES=12
BESIDE_SECONDS=120

# Of an array, Slurm takes the bare number of one member for all of them.
JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
JOB=${JOB:-$SLURM_JOB_ID}

REQUESTED= # whether Slurm or a person asked for an end that saves, by USR1
IGNORE=:   # what tasks do ahead of all
trap "" USR1

say() { echo "[$(date +%H:%M:%S) job $JOB] $*"; }

mistake() {
  say "error: $*" >&2
  exit "$MISTAKE"
}

# A field of what Slurm knows of this job, such as JobState. The controller may be busy or restart.
job() {
  local told try
  for ((try = 0; try < CONTROLLER_TRIES; try++)); do
    told=$(scontrol show job -o "$JOB") && break
    sleep "$RETRY_SECONDS"
  done
  tr ' ' '\n' <<<"$told" | sed -n "s/^$1=//p" | head -n 1
}

# The surroundings, by slurm/site.example.sh.
set_up() {
  local site=${STARGAN_SITE:-$SLURM_SUBMIT_DIR/slurm/site.sh}
  if [[ -e $site ]]; then
    # shellcheck source=slurm/site.example.sh
    source "$site"
  elif [[ ${STARGAN_SITE:-} ]]; then
    mistake "STARGAN_SITE is $site, which is not there"
  fi
  load_modules
  set +e # a site file may say otherwise, and an interrupted `wait` is no failure
  local venv=${STARGAN_VENV:-$SLURM_SUBMIT_DIR/.venv}
  [[ ! -d $venv/bin ]] || export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv"
  read -ra SRUN <<<"${STARGAN_SRUN:-}"
  read -ra COMMAND <<<"${STARGAN_COMMAND:-}"
  # Else srun takes over what `sbatch --export` said, and nothing of what is set here.
  export SLURM_EXPORT_ENV=ALL
  # srun does not take it from the job by itself since Slurm 22.05.
  export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
  # A rank is given a core or a few; libraries would start a thread for each core of the node.
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONUNBUFFERED=1
  [[ ${STARGAN_SRUN:-}${STARGAN_COMMAND:-} ]] || command -v python >/dev/null ||
    mistake "no python on $SLURMD_NODENAME: set STARGAN_VENV, STARGAN_MODULES or a container" \
      "(slurm/site.example.sh)"
}

load_modules() {
  [[ ${STARGAN_MODULES:-} ]] || return 0
  # Jobs of users with another login shell do not have the function.
  type module >/dev/null 2>&1 || source /etc/profile
  # shellcheck disable=SC2086  # words
  module load $STARGAN_MODULES || mistake "cannot load the modules $STARGAN_MODULES"
}

# Where the processes of the nodes find each other. Addresses are those by which Slurm reaches the
# nodes: a node's own name may mean 127.0.1.1 there. Job numbers keep the ports of two jobs apart.
meet() {
  local nodes name address
  mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  STARGAN_HOSTS=
  for name in "${nodes[@]:0:2}"; do
    address=$(scontrol show node -o "$name" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
    STARGAN_HOSTS+="${address:-$name} "
  done
  MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
  while (: <"/dev/tcp/127.0.0.1/$MASTER_PORT") 2>/dev/null; do
    MASTER_PORT=$((10000 + RANDOM % 20000)) # the number after it may be that of another job
  done
  export STARGAN_HOSTS MASTER_PORT
}

# One process on each of so many nodes, beside the ranks and without GPUs, for a short while.
beside() {
  local count=$1
  shift
  env -u SLURM_GPUS -u SLURM_GPUS_PER_NODE -u SLURM_GPUS_PER_TASK timeout "$BESIDE_SECONDS" \
    srun "${SRUN[@]}" --overlap --nodes="$count" --ntasks="$count" --ntasks-per-node=1 \
    bash -c "$IGNORE"'; exec "$@"' beside "$@"
}

# Run a module as every rank, and wait for the end whatever signals come. Sets CODE, the exit code
# of the rank that failed first, or STOPPED.
run_ranks() {
  # shellcheck disable=SC2016  # for the shell of the task
  local rank='"$@" && exit; code=$?; ((code == '$STOPPED')) || exit "$code"'
  meet
  say "$SLURM_JOB_NODELIST: $SLURM_NTASKS process(es), logs in $START"
  srun "${SRUN[@]}" --kill-on-bad-exit=1 --output="$START/rank_%t.log" \
    bash -c "$IGNORE; $rank; echo '$MARK'" rank \
    "${COMMAND[@]}" python -m stargan_dist.launch.slurm_task "$@" 2>"$START/srun.log" &
  follow $!
  ! grep -qx "$MARK" "$START/rank_0.log" || CODE=$STOPPED
  ((CODE == 0 || CODE == STOPPED)) || name_first
}

# A folder for the logs of this start of the job, and its FAILURES, a line each.
open_logs() {
  local logs=${STARGAN_LOGS:-$SLURM_SUBMIT_DIR}/slurm-$SLURM_JOB_ID
  START=$logs/start_${SLURM_RESTART_COUNT:-0}
  FAILURES=$logs/failures
  { mkdir -p "$START" && : >"$START/rank_0.log" && : >"$START/srun.log"; } ||
    mistake "cannot write the logs to $START (STARGAN_LOGS)"
  [[ ${SLURM_RESTART_COUNT:-} ]] || : >"$FAILURES" # job numbers may have begun anew
}

# Show what a step tells until it ends. Where an end was asked for, its ranks are told again and
# again: one that is just starting does not hear it yet.
follow() {
  local step=$1 shown
  (trap "" TERM && exec tail -q -n +1 -f --pid="$step" "$START"/{rank_0,srun}.log) &
  shown=$!
  while kill -0 "$step" 2>/dev/null; do
    [[ ! $REQUESTED ]] || scancel --quiet --signal=USR1 "$JOB"
    sleep "$RESEND_SECONDS" &
    wait -n "$!" "$step"
  done
  wait "$step"
  CODE=$?
  wait "$shown"
}

# srun tells of tasks in the order in which they end.
name_first() {
  local told rank
  told=$(grep -m 1 -E 'error: .*: tasks? [0-9].*:' "$START/srun.log") || return
  [[ $told =~ error:\ (.*):\ tasks?\ ([0-9]+)[^:]*:\ (.*) ]] || return
  rank=${BASH_REMATCH[2]} told="${BASH_REMATCH[1]}: ${BASH_REMATCH[3]}"
  [[ ! $told =~ exit\ code\ ([0-9]+) ]] || CODE=${BASH_REMATCH[1]}
  ((CODE <= 128 || CODE > 192)) || told+=" (signal $(kill -l "$CODE"))"
  say "first to fail: rank $rank on $told"
  ((rank == 0)) || tail -v -n 20 "$START/rank_$rank.log"
}

# Scheduler units to seconds: [D-]HH:MM:SS.
seconds_of() {
  local days=0 hours minutes seconds clock=$1
  [[ $clock != *-* ]] || { days=${clock%%-*} clock=${clock#*-}; }
  IFS=: read -r hours minutes seconds <<<"$clock"
  echo $((((10#$days * 24 + 10#$hours) * 60 + 10#$minutes) * 60 + 10#$seconds))
}

check_time_limit() {
  local limit signal=${SBATCH_SIGNAL:-B:USR1@300}
  [[ $signal =~ ^B:(SIG)?USR1@([0-9]+)$ ]] || mistake "SBATCH_SIGNAL is $signal, not B:USR1@SECONDS"
  local saving=${BASH_REMATCH[2]}
  limit=$(job TimeLimit)
  [[ $limit == *:*:* ]] || return 0 # UNLIMITED
  (($(seconds_of "$limit") >= 2 * saving)) ||
    mistake "the time limit, $limit, leaves less time for training than for saving (the last" \
      "$saving s, SBATCH_SIGNAL): ask for more by sbatch --time or SBATCH_TIMELIMIT"
}

# The step of the newest checkpoint. Also finds mistakes in the command before all ranks start.
saved() {
  local told
  told=$(beside 1 "${COMMAND[@]}" python -m stargan_dist.status "$@") || return
  # A container may have something to say, too.
  [[ $told =~ (^|$'\n')([0-9]+)\ of\ [0-9]+\ steps\ saved ]] && echo "${BASH_REMATCH[2]}"
}

train() {
  local before after
  trap 'REQUESTED=yes' USR1
  trap : TERM # the ranks have it, too
  # Signals reach every process of a step: those that do not handle them are not to die of them.
  IGNORE='trap "" USR1 TERM'
  set_up
  check_time_limit
  open_logs
  before=$(saved "$@")
  CODE=$?
  ((CODE == 0)) || failed 0 0
  say "$before steps are saved"
  run_ranks stargan_dist.train "$@"
  ((CODE)) || exit 0
  leave_to_slurm
  after=$(saved "$@") || after=$before
  ((CODE != STOPPED || after <= before)) || go_on "stopped and saved at step $after"
  failed "$before" "$after"
}

# End here if Slurm has decided about this job: it was cancelled, or is requeued already.
leave_to_slurm() {
  local state what="failed with exit code $CODE"
  state=$(job JobState)
  [[ ! $state =~ ^(RUNNING|SIGNALING|RESIZING)?$ ]] || return 0
  ((CODE != STOPPED)) || what="stopped and saved"
  say "$what; not requeued by this script: Slurm calls the job $state"
  exit "$CODE"
}

# Requeue this job, and end.
go_on() {
  local try tries=$CONTROLLER_TRIES
  [[ $(job Requeue) != 0 ]] || tries=0
  say "$1; requeueing the job"
  for ((try = 0; try < tries; try++)); do
    (trap "" TERM && exec scontrol requeue "$JOB") && exit 0 # it ends all that it finds here
    sleep "$RETRY_SECONDS"
    leave_to_slurm >/dev/null # it was requeued, and the answer got lost
  done
  say "it may not be requeued; the same sbatch goes on with the run"
  exit "$CODE"
}

# After an end without gain, or a failure: again, if that may help, but not for ever.
failed() {
  local before=$1 after=$2
  echo "$START: exit code $CODE, from step $before to $after" >>"$FAILURES"
  if (($(wc -l <"$FAILURES") > ${STARGAN_MAX_FAILURES:-3})); then
    say "failed too often: $(cat "$FAILURES")"
  elif ((after > before)); then
    go_on "failed, but the run had got from step $before to $after"
  elif ((CODE == STOPPED)); then
    go_on "stopped before another step was done"
  elif ((CODE != MISTAKE)) && ! nodes_answer; then
    go_on "failed, and a node of $SLURM_JOB_NODELIST does not answer"
  else
    say "failed, and no checkpoint was saved since this start (step $before): not requeued"
  fi
  exit "$CODE"
}

nodes_answer() { beside "$SLURM_NNODES" true; }

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
    mistake "a part of an array: say how many parts there are in all, STARGAN_PARTS=…"
  exec srun "${SRUN[@]}" "${COMMAND[@]}" python -m stargan_dist.shards build \
    --part "$SLURM_ARRAY_TASK_ID/$parts" --merge --processes "$SRUN_CPUS_PER_TASK" "$@"
}
