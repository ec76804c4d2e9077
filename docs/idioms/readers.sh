#!/bin/sh
# Many may read at the same time, as long as nobody writes.
flock --shared /mnt/locks/catalogue echo "reading"
