package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"lockfs/fs/ledger"
)

// Received is what a server has from its keeper.
type Received struct {
	// Device is /dev/fuse, mounted.
	Device *os.File
	Page   *ledger.Ledger
	// Guard is for backends.SessionOptions.
	Guard func(*os.File) error
	// Gone is closed when the server is to go: the keeper says so, or has gone itself.
	Gone <-chan struct{}
}

// Receive takes over what the keeper handed to this process, and decodes its brief.
func Receive(brief any) (*Received, error) {
	for fd := 4; fd <= 7; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			return nil, errors.New("this command is for lockfs mount to call, not for people")
		}
		unix.CloseOnExec(fd)
	}
	if err := unix.SetNonblock(6, true); err != nil {
		return nil, fmt.Errorf("the keeper's pipe: %w", err)
	}
	life := os.NewFile(6, "keeper")
	if err := json.NewDecoder(life).Decode(brief); err != nil {
		return nil, fmt.Errorf("what the keeper says can't be read: %w", err)
	}
	_ = run(serverPriority) // the keeper has said what there is to say of it
	page, err := ledger.Open(os.NewFile(5, "ledger"))
	if err != nil {
		return nil, err
	}
	conn, err := packets(7)
	if err != nil {
		return nil, err
	}
	guard := &guarded{conn: conn}
	gone := make(chan struct{})
	go func() { // ends with the keeper, at the latest
		_, _ = io.Copy(io.Discard, life)
		close(gone)
	}()
	return &Received{Device: os.NewFile(4, "/dev/fuse"), Page: page, Guard: guard.hold, Gone: gone}, nil
}
