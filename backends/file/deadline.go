package file

import (
	"time"

	"lockfs/backends"
)

// Deadline says that the kernel keeps the lease as long as the process lives,
// running or not: a stopped process keeps its flock.
func (s *session) Deadline() time.Duration {
	if !s.Valid() {
		return 0
	}
	return backends.NoDeadline
}
