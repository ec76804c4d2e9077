#!/bin/sh
# The fencing token under which this node holds the lock: it grows with every
# grant, so a store that remembers the greatest one it saw can refuse a late writer.
flock /mnt/locks/etl/nightly sh -c '
	token=$(getfattr --only-values -n user.lockfs.token /mnt/locks/etl/nightly)
	echo "writing with token $token"
'
