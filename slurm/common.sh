# shellcheck shell=bash
# What the scripts of this folder share; they source it in the batch shell of a job, which runs on
# the job's first node. Every rank is a task of one srun (stargan_dist/slurm.py).

# Exit codes of the training.
MISTAKE=2  # a person has to mend something
STOPPED=75 # saved because a signal came; the same command goes on

RESEND_SECONDS=5

say() { echo "[$(date +%H:%M:%S) job $SLURM_JOB_ID] $*"; }

mistake() {
  say "error: $*" >&2
  exit "$MISTAKE"
}

# A field of what Slurm knows of this job, such as JobState.
job() { scontrol show job -o "$SLURM_JOB_ID" | tr ' ' '\n' | sed -n "s/^$1=//p" | head -n 1; }

# The surroundings, by slurm/site.example.sh.
set_up() {
  local site=${STARGAN_SITE:-$SLURM_SUBMIT_DIR/slurm/site.sh}
  if [[ -e $site ]]; then
    # shellcheck source=slurm/site.example.sh
    source "$site"
  elif [[ ${STARGAN_SITE:-} ]]; then
    mistake "STARGAN_SITE is $site, which is not there"
  fi
  # shellcheck disable=SC2086  # words
  [[ ! ${STARGAN_MODULES:-} ]] || module load $STARGAN_MODULES ||
    mistake "cannot load the modules $STARGAN_MODULES"
  local venv=${STARGAN_VENV:-$SLURM_SUBMIT_DIR/.venv}
  [[ ! -d $venv/bin ]] || export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv"
  read -ra SRUN <<<"${STARGAN_SRUN:-}"
  read -ra COMMAND <<<"${STARGAN_COMMAND:-}"
  # srun does not take it from the job by itself since Slurm 22.05.
  export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
  # A rank is given a core or a few; libraries would start a thread for each core of the node.
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONUNBUFFERED=1
  [[ ${STARGAN_SRUN:-}${STARGAN_COMMAND:-} ]] || command -v python >/dev/null ||
    mistake "no python on $SLURMD_NODENAME: set STARGAN_VENV, STARGAN_MODULES or a container" \
      "(slurm/site.example.sh)"
}

# Where the processes of the nodes find each other. Addresses are those by which Slurm reaches the
# nodes: a node's own name may mean 127.0.1.1 there. Job numbers keep the ports of two jobs apart.
meet() {
  local nodes name
  mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  STARGAN_HOSTS=
  for name in "${nodes[@]:0:2}"; do
    STARGAN_HOSTS+="$(scontrol show node -o "$name" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p') "
  done
  MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
  while (: <"/dev/tcp/127.0.0.1/$MASTER_PORT") 2>/dev/null; do ((MASTER_PORT++)); done
  export STARGAN_HOSTS MASTER_PORT
}

# One process, outside of the ranks.
one() {
  srun "${SRUN[@]}" --overlap --nodes=1 --ntasks=1 --ntasks-per-node=1 \
    bash -c "${IGNORE:-:};"' exec "$@"' one "${COMMAND[@]}" python -m "$@"
}

# What each task of a step does. Slurm would take a rank that was stopped for one that failed.
# shellcheck disable=SC2016  # for the shell of the task
RANK='"$@" && exit; code=$?; ((code == '$STOPPED')) || exit "$code"; touch "$STARGAN_START/stopped"'

# Run a module as every rank, and wait for the end whatever signals come. IGNORE is done ahead of
# it. Sets CODE, the exit code of the rank that failed first, or STOPPED.
run_ranks() {
  open_logs
  meet
  say "$SLURM_JOB_NODELIST: $SLURM_NTASKS process(es), logs in $STARGAN_START"
  srun "${SRUN[@]}" --kill-on-bad-exit=1 --output="$STARGAN_START/rank_%t.log" \
    bash -c "${IGNORE:-:}; $RANK" rank \
    "${COMMAND[@]}" python -m stargan_dist.slurm "$@" 2>"$STARGAN_START/srun.log" &
  follow $!
  [[ ! -e $STARGAN_START/stopped ]] || CODE=$STOPPED
  ((CODE == 0 || CODE == STOPPED)) || name_first
}

open_logs() {
  local job=${STARGAN_LOGS:-$SLURM_SUBMIT_DIR}/slurm-$SLURM_JOB_ID
  export STARGAN_START=$job/start_${SLURM_RESTART_COUNT:-0}
  { mkdir -p "$STARGAN_START" && touch "$STARGAN_START"/{rank_0,srun}.log; } ||
    mistake "cannot write the logs to $STARGAN_START (STARGAN_LOGS)"
}

# Show what a step tells until it ends. Where an end was asked for by USR1, its ranks are told again
# and again: one that is just starting does not hear it yet.
follow() {
  local step=$1 shown
  (trap "" TERM && exec tail -q -n +1 -f --pid="$step" "$STARGAN_START"/{rank_0,srun}.log) &
  shown=$!
  while kill -0 "$step" 2>/dev/null; do
    [[ ! ${REQUESTED:-} ]] || scancel --quiet --signal=USR1 "$SLURM_JOB_ID"
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
  told=$(grep -m 1 -E 'error: .*: tasks? [0-9].*:' "$STARGAN_START/srun.log") || return
  [[ $told =~ error:\ (.*):\ tasks?\ ([0-9]+)[^:]*:\ (.*) ]] || return
  rank=${BASH_REMATCH[2]} told="${BASH_REMATCH[1]}: ${BASH_REMATCH[3]}"
  [[ ! $told =~ exit\ code\ ([0-9]+) ]] || CODE=${BASH_REMATCH[1]}
  ((CODE <= 128)) || told+=" (signal $(kill -l "$CODE"))"
  say "first to fail: rank $rank on $told"
  ((rank == 0)) || tail -v -n 20 "$STARGAN_START/rank_$rank.log"
}

# Scheduler units to seconds: [D-]HH:MM:SS.
seconds_of() {
  local days=0 hours minutes seconds clock=$1
  [[ $clock != *-* ]] || { days=${clock%%-*} clock=${clock#*-}; }
  IFS=: read -r hours minutes seconds <<<"$clock"
  echo $((((10#$days * 24 + 10#$hours) * 60 + 10#$minutes) * 60 + 10#$seconds))
}

check_time_limit() {
  local limit signal=${SBATCH_SIGNAL:-@300}
  limit=$(job TimeLimit)
  [[ $limit == *:*:* ]] || return 0 # UNLIMITED
  (($(seconds_of "$limit") >= 2 * ${signal##*@})) ||
    mistake "the time limit, $limit, leaves less time for training than for saving (the last" \
      "${signal##*@} s, SBATCH_SIGNAL): ask for more by sbatch --time or SBATCH_TIMELIMIT"
}

# The step of the newest checkpoint. Also finds mistakes in the command before all ranks start.
saved() { one stargan_dist.status "$@"; }

train() {
  local before after
  trap 'REQUESTED=yes' USR1
  trap : TERM # the ranks have it, too
  # Signals reach every process of a step: those that do not handle them are not to die of them.
  IGNORE='trap "" USR1 TERM'
  set_up
  check_time_limit
  before=$(saved "$@") || exit
  say "$before"
  run_ranks stargan_dist.train "$@"
  case $CODE in
    0 | "$MISTAKE") exit "$CODE" ;;
    "$STOPPED") go_on "stopped and saved" ;;
  esac
  after=$(saved "$@") || after=$before
  failed "${before%% *}" "${after%% *}"
}

# Requeue this job, unless Slurm has decided about it: it was cancelled, or is requeued already.
go_on() {
  local state
  state=$(job JobState)
  if [[ $state != RUNNING ]]; then
    say "$1; not requeued by this script: Slurm calls the job $state"
    exit "$CODE"
  fi
  say "$1; requeueing the job"
  scontrol requeue "$SLURM_JOB_ID" && exit 0
  say "it may not be requeued; the same sbatch goes on with the run"
  exit "$CODE"
}

# After a failure: again, if something was gained or a node is at fault, but not for ever.
failed() {
  local before=$1 after=$2 failures=$STARGAN_START/../failures
  echo "$STARGAN_START exit code $CODE, step $before to $after" >>"$failures"
  if (($(wc -l <"$failures") > ${STARGAN_MAX_FAILURES:-3})); then
    say "failed too often: $(cat "$failures")"
  elif ((after > before)); then
    go_on "failed, but the run had got from step $before to $after"
  elif ! nodes_answer; then
    go_on "failed, and a node of $SLURM_JOB_NODELIST does not answer"
  else
    say "failed, and no checkpoint was saved since this start (step $before): not requeued"
  fi
  exit "$CODE"
}

nodes_answer() {
  timeout 60 srun --overlap --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" \
    --ntasks-per-node=1 true 2>/dev/null
}

evaluate() {
  set_up
  run_ranks stargan_dist.evaluate "$@"
  exit "$CODE"
}

build_shards() {
  set_up
  local parts=${STARGAN_PARTS:-$SLURM_ARRAY_TASK_MAX}
  exec srun "${SRUN[@]}" "${COMMAND[@]}" python -m stargan_dist.shards build \
    --part "$SLURM_ARRAY_TASK_ID/$parts" --merge --processes "$SRUN_CPUS_PER_TASK" "$@"
}
