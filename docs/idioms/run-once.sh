#!/bin/sh
# A job that may run on one node at a time; on the others it does not start.
flock --nonblock --conflict-exit-code 75 /mnt/locks/etl/nightly echo "the job runs"
