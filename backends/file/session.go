package file

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

	"lockfs/backends"
)

// session is a node's presence on this machine. See the package comment.
type session struct {
	a     *area
	id    string
	log   *slog.Logger
	ttl   time.Duration
	file  *os.File     // kept locked as long as the session lives
	stat  os.FileInfo  // of that file, to know it again
	seen  atomic.Int64 // when it was last seen in its place: ns since began
	sock  *net.UnixListener
	inbox *inbox

	life   context.Context // ends with the session
	finish context.CancelFunc
	owned  sync.WaitGroup // the session's own goroutines, all ended after finish
	ending sync.Once

	mu      sync.Mutex
	closing bool // no new operations
	over    bool
	err     error
	ops     int           // operations under way
	idle    chan struct{} // closed when closing and ops is 0
	names   map[string]int
	waiters map[string]*waiter
	lines   map[string]*line
	conns   map[net.Conn]struct{}
	delays  map[string]bool // dead sessions whose lock delay is waited for
}

// presence is what a session's file says.
type presence struct {
	Node      string
	LockDelay time.Duration `json:",omitempty"` // in ns
}

const socketSuffix = ".s"

// sessionPath is the file that a session keeps locked.
func (a *area) sessionPath(id string) string { return filepath.Join(a.sessions, id) }

// socketPath reaches a session's socket through the descriptor of its
// directory, for a socket's address has only 108 bytes.
func (a *area) socketPath(id string) string {
	return a.prefix + id + socketSuffix
}

// alive reports whether the session of this file lives: whether its process
// has it locked. When that can't be found out, it lives: never take a lock from a holder on suspicion.
func alive(path string) bool {
	fd, err := openRaw(path, unix.O_RDONLY)
	if err != nil {
		return !errors.Is(err, os.ErrNotExist)
	}
	defer func() { _ = unix.Close(fd) }() // which unlocks
	return retry(func() error { return unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB) }) != nil
}

// Open starts a session. See backends.Backend.
func (b *Backend) Open(ctx context.Context, options backends.SessionOptions) (backends.Session, error) {
	type opened struct {
		s   *session
		err error
	}
	done := make(chan opened, 1)
	go func() { // the disk may hang
		s, err := b.openSession(ctx, options)
		done <- opened{s, err}
	}()
	select {
	case o := <-done:
		if o.err != nil {
			return nil, fmt.Errorf("open a session in %v: %w", b, o.err)
		}
		return o.s, nil
	case <-ctx.Done():
		go func() {
			if o := <-done; o.err == nil {
				_ = o.s.Close(context.Background()) // nobody has used it
			}
		}()
		return nil, fmt.Errorf("open a session in %v: %w", b, context.Cause(ctx))
	}
}

func (b *Backend) openSession(ctx context.Context, options backends.SessionOptions) (*session, error) {
	a, err := b.here(ctx)
	if err != nil {
		return nil, err
	}
	log := options.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &session{a: a, log: log, ttl: options.TTL, inbox: newInbox(), idle: make(chan struct{}),
		names: map[string]int{}, waiters: map[string]*waiter{}, lines: map[string]*line{}, conns: map[net.Conn]struct{}{}, delays: map[string]bool{}}
	s.life, s.finish = context.WithCancel(context.Background())
	if err := s.register(presence{Node: options.Node, LockDelay: options.LockDelay}); err != nil {
		return nil, err
	}
	if options.Guard != nil {
		if err := options.Guard(s.file); err != nil {
			s.unregister()
			return nil, fmt.Errorf("%w: %w", backends.ErrUnavailable, err)
		}
	}
	sock, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: a.socketPath(s.id), Net: "unixpacket"})
	if err != nil {
		s.unregister()
		return nil, kind(err)
	}
	s.sock = sock
	s.owned.Go(s.accept)
	s.owned.Go(s.watch)
	s.owned.Go(func() { s.inbox.run(s.life) })
	return s, nil
}

// register makes the session's file and locks it. Between the two a peer that
// sweeps may take it for a dead one's and remove it; then another is made.
func (s *session) register(p presence) error {
	text, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode the node's name: %w", err)
	}
	for {
		s.id = rand.Text()
		path := s.a.sessionPath(s.id)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			_ = os.Remove(path) // perhaps half written
			return kind(err)
		}
		s.file, err = os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			_ = os.Remove(path) // unlocked, it would be swept by the next
			return kind(err)
		}
		err = retry(func() error { return unix.Flock(int(s.file.Fd()), unix.LOCK_EX) })
		if err == nil {
			s.stat, err = s.file.Stat()
		}
		if err != nil {
			s.unregister()
			return kind(err)
		}
		if s.present() {
			return nil
		}
		s.unlock() // its file is gone
	}
}

// unlock lets go of the session's file, whoever has it open as well.
func (s *session) unlock() {
	_ = unix.Flock(int(s.file.Fd()), unix.LOCK_UN)
	_ = s.file.Close()
}

// unregister removes the session's file, then lets go of it.
func (s *session) unregister() {
	_ = os.Remove(s.a.sessionPath(s.id)) // if it stays, it is swept by the next session
	s.unlock()
}

// present reports whether the session's file is where peers look for it.
func (s *session) present() bool {
	looked := time.Since(began)
	now, err := os.Lstat(s.a.sessionPath(s.id))
	if err != nil {
		return !errors.Is(err, os.ErrNotExist)
	}
	same := os.SameFile(now, s.stat)
	if same {
		s.seen.Store(int64(looked))
	}
	return same
}

// began is when this process did, more or less.
var began = time.Now()

// unwatched reports whether the session's file was not looked for as often as it should be: the process stood still, and the watch with it.
func (s *session) unwatched() bool {
	return time.Since(began)-time.Duration(s.seen.Load()) > noticeTime*5/4
}

// watch sees that the session's file stays: should somebody remove the directory, peers
// would not know of this session any more.
func (s *session) watch() {
	interval := noticeTime
	if s.ttl > 0 {
		interval = min(interval, s.ttl/5)
	}
	for tick := time.NewTicker(max(interval, time.Millisecond)); ; {
		select {
		case <-s.life.Done():
			tick.Stop()
			return
		case <-tick.C:
			_ = s.check() // it ends the session itself
		}
	}
}

// check ends the session if its file is gone, and then returns an error.
func (s *session) check() error {
	if s.present() {
		return nil
	}
	err := fmt.Errorf("session file %s was removed or replaced: %w", s.a.sessionPath(s.id), backends.ErrSessionOver)
	s.end(err)
	return err
}

// end makes the session over, at once and without a goodbye. It does not wait for its goroutines.
func (s *session) end(why error) {
	s.ending.Do(func() {
		s.mu.Lock()
		s.closing, s.over, s.err = true, true, why // before the lock is let go: Valid is false before a peer can know
		s.mu.Unlock()
		s.finish()
		_ = s.sock.Close() // removes the socket; what stays is swept
		s.mu.Lock()
		for c := range s.conns {
			_ = c.Close() // tells the peer that we are gone
		}
		s.mu.Unlock()
		s.unlock()
	})
}

// RelabelsQuietly is as backends.Quiet says.
func (s *session) RelabelsQuietly() {}

// ID identifies the session.
func (s *session) ID() string { return s.id }

// Events delivers who waits for what this session holds.
func (s *session) Events() <-chan backends.Event { return s.inbox.out }

// Valid reports whether the session lives: until Close, or until its file is found gone. Where the process stood still it looks for
// that before it says yes: the directory may have been removed and made anew meanwhile, by those who saw it (Backend.here).
func (s *session) Valid() bool {
	if s.unwatched() {
		_ = s.check() // it ends the session itself
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.over
}

// Done is closed when the session is over.
func (s *session) Done() <-chan struct{} { return s.life.Done() }

// Err says why the session is over.
func (s *session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Close drops everything and says goodbye. Waits end with ErrSessionOver.
func (s *session) Close(ctx context.Context) error {
	s.mu.Lock()
	first := !s.closing
	s.closing = true
	if first && s.ops == 0 {
		close(s.idle)
	}
	for _, w := range s.waiters {
		w.settle(result{err: errClosed})
	}
	s.mu.Unlock()
	if !first {
		select {
		case <-s.Done():
			return s.stopped(ctx)
		case <-ctx.Done():
			return fmt.Errorf("close the session: %w", context.Cause(ctx))
		}
	}
	done := make(chan error, 1)
	go func() { done <- s.goodbye() }() // it ends by itself: each step is short, or finds the session over
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = fmt.Errorf("close the session: %w", context.Cause(ctx))
	}
	if err == nil {
		_ = os.Remove(s.a.sessionPath(s.id)) // if it stays, it is swept by the next session
	}
	s.end(nil)
	return errors.Join(err, s.stopped(ctx))
}

// stopped waits for the end of the session's goroutines, which is near: the session is over.
func (s *session) stopped(ctx context.Context) error {
	all := make(chan struct{})
	go func() {
		s.owned.Wait()
		close(all)
	}()
	select {
	case <-all:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the session's end: %w", context.Cause(ctx))
	}
}

// goodbye drops the session's entries after its last operation.
func (s *session) goodbye() error {
	select {
	case <-s.idle:
	case <-s.life.Done():
		return nil
	}
	for _, name := range s.namesInUse() {
		err := s.persist(func() error {
			return s.transact(name, func(t *txn) error {
				t.st.DropSession(s.id)
				return nil
			})
		})
		if err != nil && !errors.Is(err, backends.ErrSessionOver) {
			return err
		}
	}
	return nil
}

func (s *session) namesInUse() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]string, 0, len(s.names))
	for name := range s.names {
		names = append(names, name)
	}
	return names
}

var errClosed = fmt.Errorf("the session was closed: %w", backends.ErrSessionOver)

// begin counts an operation in, unless the session is closing. Each is ended with endOp.
func (s *session) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		if s.err != nil {
			return s.err
		}
		return errClosed
	}
	s.ops++
	return nil
}

func (s *session) endOp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ops--
	if s.closing && !s.over && s.ops == 0 {
		close(s.idle)
	}
}

// sweep removes what sessions that died left behind where nobody waits for it.
func (a *area) sweep() error {
	entries, err := os.ReadDir(a.sessions)
	if err != nil {
		return kind(err)
	}
	files, dead := map[string]bool{}, []string{}
	for _, e := range entries {
		if id := e.Name(); !strings.HasSuffix(id, socketSuffix) {
			files[id] = true
			if !alive(a.sessionPath(id)) {
				dead = append(dead, id)
			}
		}
	}
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), socketSuffix); ok && !files[id] && !alive(a.sessionPath(id)) {
			dead = append(dead, id)
		}
	}
	if len(dead) == 0 {
		return nil
	}
	if err := a.sweepStates(); err != nil {
		return err
	}
	for _, id := range dead { // last, so that a sweep that was cut short is done again
		a.bury(id)
	}
	return nil
}

// bury removes the files of a dead session, unless its lock delay lasts. It holds the file's lock
// meanwhile: a session that is just being born waits for that, and then finds
// its file gone and makes another.
func (a *area) bury(id string) {
	path := a.sessionPath(id)
	f := flock.New(path, flock.SetFlag(os.O_RDONLY))
	got, err := f.TryRLock()
	if !got && !errors.Is(err, os.ErrNotExist) {
		return
	}
	if a.delayLeft(id) > 0 {
		_ = f.Close() // which unlocks
		return
	}
	_ = os.Remove(path + socketSuffix)
	_ = os.Remove(path) // should either stay, the next sweep removes it
	_ = f.Close()       // closing its descriptor unlocks
}
