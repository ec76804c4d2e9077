#!/usr/bin/env bash
# All tests, under the race detector. A skipped test counts as a failed one: what the tests
# need is there (packages.sh), or somebody should know.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -e /dev/fuse ] || { echo "test: /dev/fuse is missing; load the module (modprobe fuse), in a container pass --device /dev/fuse --cap-add SYS_ADMIN" >&2; exit 1; }
# One package at a time: leases and hand-overs are timed, and two cores are few.
go test -race -count=1 -p 1 -timeout 15m -json "$@" ./... | go run ./scripts/testreport
