#!/usr/bin/env bash
# Makes sure that what the tests use is installed: real servers and real client programs. As
# root on Debian it installs what is missing, else it says what to install. No service is
# started: the tests start their own servers on free ports.
set -euo pipefail

# gcc and libc6-dev: Go's race detector needs them.
packages=(gcc libc6-dev fuse3 redis-server zookeeper attr stress-ng python3-filelock python3-fasteners
	python3-portalocker procmail liblockfile-bin lockfile-progs libfile-nfslock-perl daemontools iproute2 perl)

fail() { echo "packages: $*" >&2; exit 1; }

command -v go >/dev/null || fail "go is not on the PATH; install Go 1.26 or newer from https://go.dev/dl"
command -v dpkg-query >/dev/null ||
	fail "this is no Debian; install by hand what Debian calls ${packages[*]} default-jdk-headless, and run scripts/test.sh"

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

missing=()
for package in "${packages[@]}"; do
	installed "$package" || missing+=("$package")
done
# Any Java will do.
command -v java >/dev/null && command -v javac >/dev/null || missing+=(default-jdk-headless)

[ ${#missing[@]} -gt 0 ] || exit 0
[ "$(id -u)" = 0 ] || fail "missing: ${missing[*]}; as root: apt-get install --no-install-recommends ${missing[*]}"

echo "packages: installing ${missing[*]}"
policy=/usr/sbin/policy-rc.d # while it says 101, Debian starts no service
if [ ! -e $policy ]; then
	trap 'rm -f $policy' EXIT
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod 755 $policy
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends "${missing[@]}"
