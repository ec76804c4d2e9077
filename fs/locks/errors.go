package locks

import "errors"

// ErrClosed: the table is closed, the node is unmounting.
var ErrClosed = errors.New("the mount is going away")
