package keeper

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// guard is the file that keeps the server's session alive, where there is one: a session on the file back end lives as long as some process has its
// file open (backends.SessionOptions.Guard). The keeper has it open too, so that the locks of a server that dies come free when on_lost has been done, and
// not before.
type guard struct {
	conn *net.UnixConn // files come from the server

	mu   sync.Mutex
	file *os.File // the last one; nil: none, or let go
	gone bool
}

// newGuard returns a guard, and the server's end of the connection. The caller closes that, and calls letGo.
func newGuard() (g *guard, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("connect to the server: %w", err)
	}
	theirs = os.NewFile(uintptr(pair[1]), "keeper")
	conn, err := packets(pair[0])
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return &guard{conn: conn}, theirs, nil
}

// packets makes a connection of a descriptor, which it closes.
func packets(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "keeper")
	conn, err := net.FileConn(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("keeper and server: %w", err)
	}
	return conn.(*net.UnixConn), nil
}

// receive takes files until the server has gone, or letGo is called.
func (g *guard) receive() {
	for {
		file, err := receiveFile(g.conn)
		if err != nil {
			return
		}
		g.hold(file)
		if _, err := g.conn.Write([]byte{1}); err != nil {
			return
		}
	}
}

// receiveFile returns the next file. Any error is the end.
func receiveFile(conn *net.UnixConn) (*os.File, error) {
	text, rights := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	n, size, _, _, err := conn.ReadMsgUnix(text, rights)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:size])
	if err != nil || n == 0 || len(messages) != 1 {
		return nil, errors.Join(err, net.ErrClosed)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.Join(err, net.ErrClosed)
	}
	unix.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), "session"), nil
}

// hold keeps a file open instead of the one before, whose session is over.
func (g *guard) hold(file *os.File) {
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.file
	if g.gone {
		old = file
	} else {
		g.file = file
	}
	if old != nil {
		_ = old.Close() // it was only kept open
	}
}

// letGo closes the file, and takes no more.
func (g *guard) letGo() {
	_ = g.conn.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gone = true
	if g.file != nil {
		_ = g.file.Close()
		g.file = nil
	}
}

// handOver is how long the keeper may take to answer.
const handOver = 5 * time.Second

// guarded is the server's end: it returns when the keeper has a file open, too.
type guarded struct {
	mu   sync.Mutex
	conn *net.UnixConn
}

func (g *guarded) hold(file *os.File) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	err := g.conn.SetDeadline(time.Now().Add(handOver))
	if err == nil {
		_, _, err = g.conn.WriteMsgUnix([]byte{1}, unix.UnixRights(int(file.Fd())), nil)
	}
	if err == nil {
		_, err = g.conn.Read(make([]byte, 1))
	}
	if err != nil {
		return fmt.Errorf("hand a file to the keeper: %w", err)
	}
	return nil
}
