#!/usr/bin/env bash
# Install the programs that tests/slurm requires, where possible: on Debian and derivatives, as root.
# Never fails: without these programs the tests are skipped with a reason.
set -uo pipefail
PATH=$PATH:/usr/sbin:/sbin

missing=()
for entry in sbatch=slurm-client slurmctld=slurmctld slurmd=slurmd munged=munge ip=iproute2; do
  command -v "${entry%=*}" >/dev/null || missing+=("${entry#*=}")
done
((${#missing[@]})) || exit 0

if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
  echo "tests of Slurm will be skipped; to enable them, as root: apt-get install ${missing[*]}"
  exit 0
fi

# There is no policy-rc.d to prevent services from starting, because one left behind would also
# prevent all others. Without /etc/slurm/slurm.conf the services of Slurm do not start, and munged
# listens only on a local socket. The tests start their own daemons.
install() {
  DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends \
    "${missing[@]}" </dev/null >/dev/null 2>&1
}
echo "tests of Slurm: installing ${missing[*]}"
install || { apt-get update --quiet=2 >/dev/null 2>&1; install; } ||
  echo "installation failed, so they will be skipped; try: apt-get install ${missing[*]}"
exit 0
