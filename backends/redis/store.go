package redis

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"lockfs/backends"
	"lockfs/backends/record"
)

// outcomes are the words of the scripts for names and contents.
var outcomes = map[string]error{
	"noent": backends.ErrNotExist, "notdir": backends.ErrNotDir, "isdir": backends.ErrIsDir, "exist": backends.ErrExist,
	"notempty": backends.ErrNotEmpty, "toolarge": backends.ErrTooLarge, "xdev": backends.ErrCrossDevice,
}

// pageSize is how many inodes one script describes: a few milliseconds of the server's time.
const pageSize = 1000

// run runs a script of the Store within the back end's time-out, and
// turns its outcome into an error that says what was being done to what.
// Scripts that change something begin with an id (newOp), by which a
// repetition is known.
func (b *Backend) run(ctx context.Context, what string, subject any, script *goredis.Script, args ...any) (answer, error) {
	if ctx.Err() != nil {
		return answer{}, fmt.Errorf("%s %s at %s: %w", what, quoted(subject), b.where, context.Cause(ctx))
	}
	life := context.WithoutCancel(ctx) // it ends the waiting, not the request
	var a answer
	var err error
	ok := b.mayBeQuick()
	if ok {
		a, ok, err = b.quick(life, script, args...)
	}
	if !ok {
		a, err = detach(ctx, b.crew, nil, func() (answer, error) {
			bounded, cancel := context.WithTimeout(life, b.timeout)
			defer cancel()
			return b.try(bounded, script, args...)
		})
	}
	if errors.Is(err, errClosed) {
		err = fmt.Errorf("%w: the connection is closed", backends.ErrUnavailable)
	}
	if err == nil && a.outcome != "ok" {
		if err = outcomes[a.outcome]; err == nil {
			err = fmt.Errorf("%w: a script answers %q", backends.ErrForeign, a.outcome)
		}
	}
	if err != nil {
		return answer{}, fmt.Errorf("%s %s at %s: %w", what, quoted(subject), b.where, err)
	}
	return a, nil
}

func quoted(subject any) string {
	if name, ok := subject.(string); ok {
		return strconv.Quote(name)
	}
	return fmt.Sprintf("inode %v", subject)
}

// info is run for scripts that return an inode.
func (b *Backend) info(ctx context.Context, what string, subject any, script *goredis.Script, args ...any) (backends.Info, error) {
	a, err := b.run(ctx, what, subject, script, args...)
	if err != nil {
		return backends.Info{}, err
	}
	info, err := decodeInfo(a.fields)
	if err != nil {
		return info, fmt.Errorf("%s %s at %s: %w", what, quoted(subject), b.where, err)
	}
	return info, nil
}

func newOp() string {
	var b [16]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// Stat is as backends.Store says, and so are all methods below.
func (b *Backend) Stat(ctx context.Context, name string) (backends.Info, error) {
	return b.info(ctx, "looking up", name, statScript, name)
}

func (b *Backend) StatInode(ctx context.Context, ino uint64) (backends.Info, error) {
	return b.info(ctx, "looking up", ino, statInodeScript, ino)
}

// List reads a big directory in pieces, so as not to hold up the server: the
// names at one moment, then attributes; a file that goes meanwhile is left out.
func (b *Backend) List(ctx context.Context, dir string) ([]backends.Entry, error) {
	const what = "listing"
	a, err := b.run(ctx, what, dir, listScript, dir, pageSize)
	if err != nil {
		return nil, err
	}
	rows := a.fields[min(1, len(a.fields)):]
	if a.text(0) == "all" {
		return b.entries(dir, rows, func(row []any) []any { return row[1:] })
	}
	byIno := make(map[string][]any, len(rows))
	for some := range slices.Chunk(rows, pageSize) {
		inos := make([]any, len(some))
		for i, row := range some {
			inos[i] = field(row, 1)
		}
		page, err := b.run(ctx, what, dir, describeScript, inos...)
		if err != nil {
			return nil, err
		}
		for _, f := range page.fields {
			ino, _ := field(f, 0).(string)
			byIno[ino], _ = f.([]any)
		}
	}
	return b.entries(dir, rows, func(row []any) []any {
		ino, _ := row[1].(string)
		return byIno[ino]
	})
}

func field(row any, i int) any {
	if fields, ok := row.([]any); ok && i < len(fields) {
		return fields[i]
	}
	return nil
}

// entries decodes rows of component, inode number and more; attrs
// finds the attributes to a row, nil where the file is gone.
func (b *Backend) entries(dir string, rows []any, attrs func(row []any) []any) ([]backends.Entry, error) {
	entries := make([]backends.Entry, 0, len(rows))
	for _, r := range rows {
		row, _ := r.([]any)
		name, ok := field(r, 0).(string)
		if !ok || len(row) < 2 {
			return nil, fmt.Errorf("listing %q at %s: %w: a row of %d fields", dir, b.where, backends.ErrForeign, len(row))
		}
		found := attrs(row)
		if found == nil {
			continue
		}
		info, err := decodeInfo(found)
		if err != nil {
			return nil, fmt.Errorf("listing %q at %s: %w", dir, b.where, err)
		}
		entries = append(entries, backends.Entry{Name: name, Info: info})
	}
	return entries, nil
}

// Create chooses the inode number here.
func (b *Backend) Create(ctx context.Context, name string, info backends.Info) (backends.Info, error) {
	links := 1
	if info.IsDir() {
		links = 2
	}
	return b.info(ctx, "creating", name, createScript, newOp(), name, record.NewIno(),
		info.Mode, info.UID, info.GID, links, len(info.Target),
		nanos(info.Atime), nanos(info.Mtime), nanos(info.Ctime), info.Target)
}

func (b *Backend) Link(ctx context.Context, oldName, newName string) (backends.Info, error) {
	return b.info(ctx, "linking to "+strconv.Quote(oldName), newName, linkScript, newOp(), oldName, newName)
}

func (b *Backend) Rename(ctx context.Context, oldName, newName string, noReplace bool) error {
	_, err := b.run(ctx, "renaming to "+strconv.Quote(newName), oldName, renameScript, newOp(), oldName, newName, flag(noReplace))
	return err
}

func (b *Backend) Remove(ctx context.Context, name string, dir bool) error {
	_, err := b.run(ctx, "removing", name, removeScript, newOp(), name, flag(dir))
	return err
}

func flag(on bool) string {
	if on {
		return "1"
	}
	return "0"
}

func (b *Backend) Read(ctx context.Context, ino uint64, off int64, n int) ([]byte, error) {
	if n <= 0 || off < 0 || off >= backends.MaxContent {
		_, err := b.run(ctx, "reading", ino, readScript, ino, 1, 0) // nothing, but it must be there
		return nil, err
	}
	a, err := b.run(ctx, "reading", ino, readScript, ino, off, off+int64(min(n, backends.MaxContent))-1)
	if err != nil {
		return nil, err
	}
	return []byte(a.text(0)), nil
}

func (b *Backend) Write(ctx context.Context, ino uint64, off int64, data []byte, mtime time.Time) (backends.Info, error) {
	if len(data) > backends.MaxContent || off > backends.MaxContent { // spare the server the bytes
		return backends.Info{}, fmt.Errorf("writing inode %d at %s: %w", ino, b.where, backends.ErrTooLarge)
	}
	return b.info(ctx, "writing", ino, writeScript, newOp(), ino, off, data, nanos(mtime))
}

func (b *Backend) Update(ctx context.Context, ino uint64, attr backends.Attr) (backends.Info, error) {
	args := []any{newOp(), ino, "", ""}
	if attr.Size != nil {
		args[2] = *attr.Size
	}
	if attr.Mode != nil {
		args[3] = *attr.Mode & 0o7777
	}
	if attr.UID != nil {
		args = append(args, "u", *attr.UID)
	}
	if attr.GID != nil {
		args = append(args, "g", *attr.GID)
	}
	if attr.Atime != nil {
		args = append(args, "at", nanos(*attr.Atime))
	}
	if attr.Mtime != nil {
		args = append(args, "mt", nanos(*attr.Mtime))
	}
	if !attr.Ctime.IsZero() {
		args = append(args, "ct", nanos(attr.Ctime))
	}
	return b.info(ctx, "changing", ino, updateScript, args...)
}

// nanos writes a time as the store keeps it: nanoseconds since 1970, held
// within what 64 bits can say; the zero time is 1970.
func nanos(t time.Time) int64 {
	switch {
	case t.IsZero():
		return 0
	case t.Before(time.Unix(0, math.MinInt64)):
		return math.MinInt64
	case t.After(time.Unix(0, math.MaxInt64)):
		return math.MaxInt64
	}
	return t.UnixNano()
}

// decodeInfo reads an inode number and the attributes in the order of FIELDS (lua/files.lua).
func decodeInfo(fields []any) (backends.Info, error) {
	var numbers [9]int64
	texts := make([]string, 10)
	if len(fields) != len(texts) {
		return backends.Info{}, fmt.Errorf("%w: an inode of %d fields", backends.ErrForeign, len(fields))
	}
	for i := range texts {
		texts[i], _ = fields[i].(string)
		if i < len(numbers) {
			var err error
			if numbers[i], err = strconv.ParseInt(texts[i], 10, 64); err != nil {
				return backends.Info{}, fmt.Errorf("%w: an inode with %q for a number", backends.ErrForeign, texts[i])
			}
		}
	}
	return backends.Info{
		Ino: uint64(numbers[0]), Mode: uint32(numbers[1]), UID: uint32(numbers[2]), GID: uint32(numbers[3]),
		Nlink: uint32(numbers[4]), Size: numbers[5],
		Atime: time.Unix(0, numbers[6]), Mtime: time.Unix(0, numbers[7]), Ctime: time.Unix(0, numbers[8]),
		Target: texts[9],
	}, nil
}
