package mountpoint

import (
	"fmt"

	"lockfs/fs/ledger"
)

// Ledger is the mount as a ledger has it.
func (m Mount) Ledger() ledger.Mount {
	l := ledger.Mount{ID: m.ID}
	_, _ = fmt.Sscanf(m.Dev, "%d:%d", &l.Major, &l.Minor) // the kernel's own format
	return l
}
