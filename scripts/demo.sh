#!/usr/bin/env bash
# Two nodes on this machine, with the file back end: one holds a lock, the other waits for it.
# Needs Go, /dev/fuse, and root or the package fuse3. Leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "demo: $*" >&2; exit 1; }
command -v go >/dev/null || fail "go is not on the PATH; install Go 1.26 from https://go.dev/dl"
command -v flock >/dev/null || fail "flock(1) is missing; install the package util-linux"
[ -e /dev/fuse ] || fail "/dev/fuse is missing; load the module: modprobe fuse"
if [ "$(id -u)" != 0 ] && ! command -v fusermount3 >/dev/null; then
	fail "fusermount3 is missing; install the package fuse3, or run as root"
fi

work=$(mktemp -d)
clean() {
	status=$?
	for node in a b; do
		"$work/lockfs" umount -l "$work/$node" 2>/dev/null || true
	done
	wait
	rm -rf "$work" && exit $status
}
trap clean EXIT
trap 'exit 130' INT TERM

go build -o "$work/lockfs" ./cmd/lockfs
printf 'backends:\n  - type: file\n    config: {path: %s/store}\n' "$work" >"$work/lockfs.yml"
for node in a b; do
	mkdir "$work/$node"
	"$work/lockfs" mount -c "$work/lockfs.yml" -o node=$node "$work/$node"
	echo "node $node is mounted at $work/$node"
done

start=$(date +%s%N)
say() { printf '%5d ms  %s\n' $((($(date +%s%N) - start) / 1000000)) "$*"; }

say "a: asks for the lock etl/nightly"
mkdir "$work/a/etl"
(
	flock 9
	say "a: has it, and works for two seconds"
	touch "$work/holding"
	sleep 2
	say "a: lets go"
) 9>"$work/a/etl/nightly" &
until [ -e "$work/holding" ]; do sleep 0.01; done

if flock --nonblock "$work/b/etl/nightly" true; then
	fail "b got the lock while a had it: this is a bug"
fi
say "b: tried without waiting, and was told that it is held"
say "b: waits"
flock "$work/b/etl/nightly" true
say "b: had its turn"
[ "$(cat "$work/b/etl/nightly" | wc -c)" = 0 ]
wait
