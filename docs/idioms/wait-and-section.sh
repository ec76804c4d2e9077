#!/bin/sh
# A critical section inside a script: wait at most ten seconds for the lock.
(
	flock --timeout 10 9 || exit 75
	echo "only one node is here"
) 9>/mnt/locks/report
