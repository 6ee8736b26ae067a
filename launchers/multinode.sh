#!/usr/bin/env bash
# Trains on several machines that no scheduler looks after.
#
#   launchers/multinode.sh HOSTFILE -m stargan_dist.train --config configs/afhq.yaml --batch_size 16
#
# HOSTFILE names a machine a line, "#" begins a comment. Ranks meet on the first machine:
#
#   node0            # a process for each of its GPUs, or one if it has none
#   me@node1 slots=4 # four processes
#
# What follows, "-m MODULE …" or "SCRIPT …", is run by torchrun on each machine, in the folder where
# you are now. It must be there with the same code; run and shards must be where all machines reach
# them.
#
# Machines are reached by ssh without a password. The names must have addresses on all of them.
# Ranks talk through any ports, so machines must let each other in.
#
#   STARGAN_RSH   another command than ssh: it is given a machine and a command line for its shell
#                 (a sh), and passes input, output and the exit code on.
#   STARGAN_VENV  the virtual environment whose python is used; .venv if that is there, or else
#                 python is what each machine's PATH has.
#
# Variables of your environment that begin with AWS_, CUDA_, GLOO_, HF_, MKL_, NCCL_, OMP_, STARGAN_
# or TORCH_ are those of the ranks, too; they travel as input and are on no command line. Without
# GLOO_SOCKET_IFNAME each machine takes the interface that leads to the first machine (NCCL chooses
# by itself: NCCL_SOCKET_IFNAME).
#
# What a machine prints is shown behind its name, and is in multinode-logs/TIME-PID/MACHINE.log.
#
# Ctrl-C, SIGTERM or SIGUSR1: all ranks save at the same step and leave; the same command goes on.
# If this script is killed, or a connection to a machine breaks, the ranks take it for SIGTERM.
# If a machine fails, the others are ended, and the last line names it.
#
# Exit code: 0 finished; 75 stopped, the state is saved; 2 a mistake, explained by a line; otherwise
# that of the machine that failed first.
set -euo pipefail

HANDED_ON='^(AWS|CUDA|GLOO|HF|MKL|NCCL|OMP|STARGAN|TORCH)_'
# BatchMode: nobody is there to be asked. The others: a machine that is off is noticed after 15
# seconds, ahead of the other ranks, and so is the one that is named.
SSH="ssh -o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=5 -o ServerAliveCountMax=2"
STOPPED=75
UNREACHED=255 # ssh's own, for a connection that broke or never was
GRACE=20     # seconds for the other machines, when one has failed
HOSTS=()     # by number: the names of the machines as given
SLOTS=()     # their processes; "" for those of their GPUs
ORDERS=()    # file descriptors: what stargan_dist.launch.node_agent on each reads
JOBS=()      # process groups of the connections
WORST=       # machine and exit code of the first that failed
STATUS=0

fail() {
    echo "error: $*" >&2
    exit 2
}

read_hosts() { # FILE
    local line host slots number=0
    [[ -r $1 ]] || fail "$1: no such file; it should name a machine a line (--help tells more)"
    while read -r line || [[ $line ]]; do
        ((++number))
        read -r host slots <<<"${line%%#*}" || true
        [[ $host ]] || continue
        [[ $slots =~ ^(slots=[1-9][0-9]*)?$ ]] || fail "$1, line $number: \"$slots\" is not slots=N"
        [[ " ${HOSTS[*]} " != *" $host "* ]] || fail "$1, line $number: $host is there twice"
        HOSTS+=("$host")
        SLOTS+=("${slots#slots=}")
    done <"$1"
    ((${#HOSTS[@]})) || fail "$1: names no machine"
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

quoted() { # WORD…: for any sh; printf %q is for bash
    local word
    for word; do printf " '%s'" "${word//\'/\'\\\'\'}"; done
}

command_line() { # NUMBER WORD…: what that machine is to run
    local number=$1 peer=0
    shift
    ((number)) || peer=1
    set -- --number "$number" --machines "${#HOSTS[@]}" --first "${HOSTS[0]#*@}" --port "$PORT" \
        ${HOSTS[peer]:+--peer "${HOSTS[peer]#*@}"} \
        ${SLOTS[number]:+--slots "${SLOTS[number]}"} -- "$@"
    echo "cd$(quoted "$PWD") && exec$(quoted "$PYTHON" -m stargan_dist.launch.node_agent "$@")"
}

machine() { # NUMBER WORD…: a connection, to its end, which it reports
    local number=$1 host=${HOSTS[$1]} code=0
    # shellcheck disable=SC2086  # a command of several words
    ${STARGAN_RSH:-$SSH} "$host" "$(command_line "$@")" <"$TEMP/$number" 2>&1 |
        tee "$LOGS/$host.log" | sed -u "s/^/$host: /" || code=$?
    echo "$number $code" >&"$ENDED"
}

environment() {
    local name
    for name in $(compgen -e | grep -E "$HANDED_ON"); do printf '%s=%s\0' "$name" "${!name}"; done
    printf '\0'
}

start() { # WORD…
    local number orders
    for number in "${!HOSTS[@]}"; do
        mkfifo "$TEMP/$number"
        machine "$number" "$@" &
        JOBS+=($!)
    done
    # Opened when all are started, so that none holds another's: they end when this script does.
    for number in "${!HOSTS[@]}"; do
        exec {orders}>"$TEMP/$number"
        ORDERS+=("$orders")
        environment >&"$orders" || true # it has ended already
    done 2>/dev/null
}

order() { # WORD: to all machines that are still there
    local orders
    for orders in "${ORDERS[@]}"; do echo "$1" >&"$orders" || true; done 2>/dev/null
}

ended() { # NUMBER CODE
    ((!$2)) && return
    (($2 != STOPPED)) || STATUS=$STOPPED
    [[ ! $WORST ]] || return 0
    WORST="${HOSTS[$1]} failed first, with exit code $2; its output: $LOGS/${HOSTS[$1]}.log"
    ((STATUS)) || STATUS=$2
    # Its ranks may live, and save now as they miss the connection: not without the others.
    if (($2 == UNREACHED)); then order TERM; else order END; fi
}

watch() { # Until all have ended, or one has failed and the others had their time
    local number code left=${#HOSTS[@]}
    while ((left--)); do
        # shellcheck disable=SC2086  # an option or none
        read -r ${WORST:+-t $GRACE} -u "$ENDED" number code || return 0
        ended "$number" "$code"
    done
}

kill_rest() { # The connections to machines that no longer answer
    local job
    for job in "${JOBS[@]}"; do kill -- "-$job" || true; done 2>/dev/null
}

tell() {
    case $STATUS in
        0) echo "finished on ${#HOSTS[@]} machines" ;;
        "$STOPPED") echo "stopped, the state is saved: the same command goes on" ;;
        *) echo "error: $WORST" >&2 ;;
    esac
    exit "$STATUS"
}

main() {
    [[ ${1:-} != --help && ${1:-} != -h ]] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit; }
    (($# > 1)) || fail "HOSTFILE and what to train are needed; --help tells more"
    read_hosts "$1"
    find_python
    PORT=$((10000 + $$ % 20000)) # below those that a kernel gives to connections
    LOGS=multinode-logs/$(date +%Y%m%d-%H%M%S)-$$
    mkdir -p "$LOGS"
    TEMP=$(mktemp -d)
    mkfifo "$TEMP/ended"
    exec {ENDED}<>"$TEMP/ended"
    set -m # each connection in a group of its own: Ctrl-C is not for them
    trap : PIPE # orders to a machine that has ended
    start "${@:2}"
    rm -r "$TEMP"
    trap 'order TERM' TERM INT
    trap 'order USR1' USR1
    watch
    kill_rest
    tell
}

main "$@"
