package locks

import (
	"errors"
	"fmt"

	"lockfs/backends"
)

// ErrClosed: the table is closed, the node is unmounting.
var ErrClosed = errors.New("the mount is going away")

// ErrLost: a lock that was held through this descriptor was lost.
var ErrLost = fmt.Errorf("a lock held through this descriptor was lost: %w", backends.ErrSessionOver)
