package backends

import (
	"errors"
	"io/fs"
)

// The kinds of errors that back ends return, to be tested with errors.Is.
// Engines wrap them with what was being done and to which name.
var (
	// ErrWouldBlock: another session holds the lock, and the request is not to wait.
	ErrWouldBlock = errors.New("held by another node")
	// ErrDeadlock: the wait would never end.
	ErrDeadlock = errors.New("would deadlock with another node")
	// ErrYield: the holder locks by explicit calls, and the request yields to those.
	ErrYield = errors.New("held by an explicit lock call on another node")
	// ErrSessionOver: the session is closed, or its lease is lost.
	ErrSessionOver = errors.New("session is over")
	// ErrGivenUp: the context ended while an Acquire was on its way or waited. It comes with that of the context.
	ErrGivenUp = errors.New("given up")
	// ErrUnavailable: the server can't be reached or does not answer in time.
	ErrUnavailable = errors.New("back end out of reach")
	// ErrRefused: the server answers, but refuses (password, permission, read-only).
	ErrRefused = errors.New("back end refuses")
	// ErrForeign: the server is not what the configuration says, or holds what lockfs did not write.
	ErrForeign = errors.New("not a usable back end")

	// ErrExist and ErrNotExist are those of io/fs.
	ErrExist    = fs.ErrExist
	ErrNotExist = fs.ErrNotExist

	ErrNotDir      = errors.New("not a directory")
	ErrIsDir       = errors.New("is a directory")
	ErrNotEmpty    = errors.New("directory not empty")
	ErrTooLarge    = errors.New("larger than 512 KiB")
	ErrNoSpace     = errors.New("no space left in the back end")
	ErrCrossDevice = errors.New("a directory that is not empty can't be renamed in one step")
)
