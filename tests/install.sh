#!/usr/bin/env bash
# Install the programs that tests/slurm and the tests in a browser require, where possible: on Debian
# and derivatives, as root. Never fails: without these programs the tests are skipped with a reason.
set -uo pipefail
PATH=$PATH:/usr/sbin:/sbin

# There is no policy-rc.d to prevent services from starting, because one left behind would also
# prevent all others. Without /etc/slurm/slurm.conf the services of Slurm do not start, and munged
# listens only on a local socket. The tests start their own daemons.
install() {
  DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends \
    "$@" </dev/null >/dev/null 2>&1
}

# provide TESTS PROGRAM=PACKAGE…: install the packages of missing programs.
provide() {
  local tests=$1 missing=() entry
  for entry in "${@:2}"; do
    command -v "${entry%=*}" >/dev/null || missing+=("${entry#*=}")
  done
  ((${#missing[@]})) || return 0
  if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
    echo "$tests will be skipped; to enable them, as root: apt-get install ${missing[*]}"
    return 0
  fi
  echo "$tests: installing ${missing[*]}"
  install "${missing[@]}" || { apt-get update --quiet=2 >/dev/null 2>&1; install "${missing[@]}"; } ||
    echo "installation failed, so they will be skipped; try: apt-get install ${missing[*]}"
}

provide "tests of Slurm" sbatch=slurm-client slurmctld=slurmctld slurmd=slurmd munged=munge ip=iproute2
provide "tests in a browser" chromium=chromium
exit 0
