#!/usr/bin/env bash
# Train on several machines that have no scheduler.
#
#   launchers/multinode.sh HOSTFILE -m stargan_dist.train --config configs/afhq.yaml --batch_size 16
#
# HOSTFILE lists one machine per line; "#" starts a comment. Ranks meet on the first machine:
#
#   node0            # one process per GPU, or one process on a machine without GPUs
#   me@node1 slots=4 # four processes
#
# The remaining arguments, "-m MODULE …" or "SCRIPT …", are run by torchrun on each machine, in the
# current folder. Every machine must have this folder with the same code. All machines must be able
# to reach the run and the shards.
#
# Machines are reached by ssh without a password. Every machine must be able to resolve the names of
# all machines. Ranks connect to arbitrary ports, so machines must accept connections from each
# other.
#
#   STARGAN_RSH   replacement for ssh. It is called with a machine and a command line for a shell
#                 (sh) on that machine. It must forward input, output and the exit code.
#   STARGAN_VENV  virtual environment with the python to use. Default: .venv if it exists, otherwise
#                 python from the PATH of each machine.
#
# The ranks receive all variables of your environment that begin with AWS_, CUDA_, GLOO_, HF_, MKL_,
# NCCL_, OMP_, STARGAN_ or TORCH_. They are sent on standard input and do not appear on any command
# line. Without GLOO_SOCKET_IFNAME, each machine uses the interface that leads to the first machine.
# (NCCL selects its interface itself; NCCL_SOCKET_IFNAME overrides it.)
#
# The output of each machine is shown with its name as prefix and is written to
# multinode-logs/TIME-PID/MACHINE.log.
#
# Ctrl-C, SIGTERM or SIGUSR1: all ranks save at the same step and exit; the same command resumes.
# If this script is killed, or the connection to a machine breaks, the ranks act as on SIGTERM.
# If a machine fails, the others are ended, and the last line names it.
#
# Exit code: 0 finished; 75 stopped with the state saved; 2 a mistake, which one line explains; 74 a
# fault of storage, a disk or a machine, after which the same command may succeed; otherwise the exit
# code of the machine that failed first.
set -euo pipefail
unset CDPATH # with it, `cd` searches other folders and prints what it found

# [USER@]MACHINE. A name is a word of ssh's command line, where it must not be an option, and the name
# of a log file.
HOST='^([A-Za-z0-9_][A-Za-z0-9_.-]{0,63}@)?[A-Za-z0-9][A-Za-z0-9_.:%-]{0,252}$'
FORWARDED='^(AWS|CUDA|GLOO|HF|MKL|NCCL|OMP|STARGAN|TORCH)_'
# BatchMode: nobody can answer a prompt. The other options: a machine that is off is noticed after
# 15 seconds. Its peers have not failed by then, so the last line names the right machine.
SSH="ssh -o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=5 -o ServerAliveCountMax=2"
STOPPED=75
UNREACHED=255    # exit code of ssh for a connection that broke or was never established
GRACE=20         # seconds for the other machines to end after one has failed
HOSTS=()         # names of the machines as given, by machine number
SLOTS=()         # processes per machine; "" for one per GPU
CONTROLS=()      # file descriptors: standard input of stargan_dist.launch.node_agent, per machine
JOBS=()          # process groups of the connections
FIRST_FAILURE=   # description of the first failure
STATUS=0

fail() {
    echo "error: $*" >&2
    exit 2
}

shown() { # TEXT: its beginning, on one line of a terminal
    printf '%.100q' "${1::100}"
}

read_hosts() { # FILE
    local line host slots number=0
    [[ -r $1 && ! -d $1 ]] || fail "$1: no such file; it must list one machine per line (see --help)"
    while read -r line || [[ $line ]]; do
        ((++number))
        read -r host slots <<<"${line%%#*}" || true
        [[ $host ]] || continue
        [[ $host =~ $HOST ]] || fail "$1, line $number: $(shown "$host") is not the name of a machine"
        [[ $slots =~ ^(slots=[1-9][0-9]{0,4})?$ ]] ||
            fail "$1, line $number: \"$(shown "$slots")\" is not slots=N"
        [[ " ${HOSTS[*]} " != *" $host "* ]] || fail "$1, line $number: $host is listed twice"
        HOSTS+=("$host")
        SLOTS+=("${slots#slots=}")
    done <"$1"
    ((${#HOSTS[@]})) || fail "$1: lists no machine"
}

find_python() {
    local venv=${STARGAN_VENV:-.venv}
    PYTHON=python
    if [[ -d $venv ]]; then
        PYTHON=$(cd "$venv" && pwd)/bin/python
    elif [[ ${STARGAN_VENV:-} ]]; then
        fail "STARGAN_VENV is $venv, but there is no such folder"
    fi
}

quoted() { # WORD…: quoted for any sh; printf %q quotes for bash only
    local word
    for word; do printf " '%s'" "${word//\'/\'\\\'\'}"; done
}

agent_command() { # NUMBER WORD…: the command line for that machine
    local number=$1 peer=0
    shift
    ((number)) || peer=1
    set -- --number "$number" --machines "${#HOSTS[@]}" --first "${HOSTS[0]#*@}" --port "$PORT" \
        ${HOSTS[peer]:+--peer "${HOSTS[peer]#*@}"} \
        ${SLOTS[number]:+--slots "${SLOTS[number]}"} -- "$@"
    echo "cd$(quoted "$PWD") && exec$(quoted "$PYTHON" -m stargan_dist.launch.node_agent "$@")"
}

connect() { # NUMBER WORD…: run the agent on that machine until it ends, and report its exit code
    local number=$1 host=${HOSTS[$1]}
    set +e # output that cannot be written, on a full disk, is lost and no failure
    # shellcheck disable=SC2086  # a command of several words
    ${STARGAN_RSH:-$SSH} "$host" "$(agent_command "$@")" <"$TEMP/$number" 2>&1 |
        { tee -p "$LOGS/$host.log" | sed -u "s/^/$host: /"; cat >/dev/null; }
    echo "$number ${PIPESTATUS[0]}" >&"$RESULTS"
}

forwarded_environment() {
    local name
    for name in $(compgen -e | grep -E "$FORWARDED"); do printf '%s=%s\0' "$name" "${!name}"; done
    printf '\0'
}

start_all() { # WORD…
    local number control
    for number in "${!HOSTS[@]}"; do
        mkfifo "$TEMP/$number"
        connect "$number" "$@" &
        JOBS+=($!)
    done
    # Opened only after all connections have started: no connection may inherit the pipe of another,
    # because the pipes must close when this script ends.
    for number in "${!HOSTS[@]}"; do
        exec {control}>"$TEMP/$number"
        CONTROLS+=("$control")
        forwarded_environment >&"$control" || true # the machine may have failed already
    done 2>/dev/null
}

send_to_all() { # MESSAGE: to all machines that are still connected
    local control
    for control in "${CONTROLS[@]}"; do echo "$1" >&"$control" || true; done 2>/dev/null
}

record_result() { # NUMBER CODE
    ((!$2)) && return
    (($2 != STOPPED)) || STATUS=$STOPPED
    [[ ! $FIRST_FAILURE ]] || return 0
    FIRST_FAILURE="${HOSTS[$1]} failed first, with exit code $2; its output: $LOGS/${HOSTS[$1]}.log"
    ((STATUS)) || STATUS=$2
    # If only the connection failed, the ranks of that machine are alive and save now because the
    # connection is gone. They can only save together with the other machines.
    if (($2 == UNREACHED)); then send_to_all TERM; else send_to_all END; fi
}

wait_for_all() { # until all machines have ended, or the grace period after a failure is over
    local number code left=${#HOSTS[@]}
    while ((left--)); do
        # shellcheck disable=SC2086  # one option or none
        read -r ${FIRST_FAILURE:+-t $GRACE} -u "$RESULTS" number code || return 0
        record_result "$number" "$code"
    done
}

kill_connections() { # to machines that no longer answer
    local job
    for job in "${JOBS[@]}"; do kill -- "-$job" || true; done 2>/dev/null
}

finish() {
    case $STATUS in
        0) echo "finished on ${#HOSTS[@]} machines" ;;
        "$STOPPED") echo "stopped, the state is saved; run the same command to resume" ;;
        *) echo "error: $FIRST_FAILURE" >&2 ;;
    esac || true # as in connect
    exit "$STATUS"
}

main() {
    [[ ${1:-} != --help && ${1:-} != -h ]] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit; }
    (($# > 1)) || fail "HOSTFILE and a module or script to run are required (see --help)"
    read_hosts "$1"
    find_python
    PORT=$((10000 + $$ % 20000)) # below the kernel's range of ports for outgoing connections
    LOGS=multinode-logs/$(date +%Y%m%d-%H%M%S)-$$
    mkdir -p "$LOGS"
    TEMP=$(mktemp -d)
    mkfifo "$TEMP/results"
    exec {RESULTS}<>"$TEMP/results"
    set -m # each connection in its own process group, so that Ctrl-C does not reach it
    trap : PIPE # writing to a machine that has ended is not an error
    start_all "${@:2}"
    rm -r "$TEMP"
    trap 'send_to_all TERM' TERM INT
    trap 'send_to_all USR1' USR1
    wait_for_all
    kill_connections
    finish
}

main "$@"
