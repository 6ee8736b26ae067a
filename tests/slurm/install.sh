#!/usr/bin/env bash
# Installs what tests/slurm needs, where that can be done: Debian and its like, as root.
# Never fails: without these programs the tests are skipped, and say why.
set -uo pipefail
PATH=$PATH:/usr/sbin:/sbin

missing=()
for entry in sbatch=slurm-client slurmctld=slurmctld slurmd=slurmd munged=munge ip=iproute2; do
  command -v "${entry%=*}" >/dev/null || missing+=("${entry#*=}")
done
((${#missing[@]})) || exit 0

if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
  echo "tests of Slurm will be skipped; they need, as root: apt-get install ${missing[*]}"
  exit 0
fi

# No policy-rc.d keeps the services from starting, for one left behind would keep all others from
# it too: without /etc/slurm/slurm.conf Slurm's do not start, and munged listens on a local socket
# alone. The tests start daemons of their own.
install() {
  DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends \
    "${missing[@]}" </dev/null >/dev/null 2>&1
}
echo "tests of Slurm: installing ${missing[*]}"
install || { apt-get update --quiet=2 >/dev/null 2>&1; install; } ||
  echo "that failed, and they will be skipped; try: apt-get install ${missing[*]}"
exit 0
