package file

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"

	"lockfs/backends"
	"lockfs/backends/queue"
)

// A state as it is stored: the magic, a checksum of the rest, its length, the version, the name and the
// entries. Numbers are varints, strings and lists have their length before them. What follows does not count.
const magic = "lockfs state 1\n"

var errNoState = errors.New("torn, or of another program or version")

func encodeState(version uint64, name string, st queue.State) []byte {
	body := make([]byte, 0, 64+128*len(st))
	body = binary.AppendUvarint(body, version)
	body = appendString(body, name)
	body = binary.AppendUvarint(body, uint64(len(st)))
	for i := range st {
		body = appendEntry(body, &st[i])
	}
	data := make([]byte, 0, len(magic)+14+len(body))
	data = append(data, magic...)
	data = binary.LittleEndian.AppendUint32(data, crc32.ChecksumIEEE(body))
	data = binary.AppendUvarint(data, uint64(len(body)))
	return append(data, body...)
}

func appendString(to []byte, s string) []byte {
	return append(binary.AppendUvarint(to, uint64(len(s))), s...)
}

func appendLock(to []byte, l backends.Lock) []byte {
	to = binary.AppendUvarint(to, l.First)
	to = binary.AppendUvarint(to, l.Last)
	return append(to, byte(l.Mode))
}

func appendEntry(to []byte, e *queue.Entry) []byte {
	to = appendString(to, e.ID)
	to = appendString(to, e.Session)
	to = appendLock(to, e.Lock)
	granted := byte(0)
	if e.Granted {
		granted = 1
	}
	to = append(to, byte(e.Hint), byte(e.YieldTo), granted)
	to = binary.AppendUvarint(to, e.Token)
	to = binary.AppendUvarint(to, e.Seq)
	to = binary.AppendUvarint(to, uint64(len(e.Held)))
	for _, l := range e.Held {
		to = appendLock(to, l)
	}
	return to
}

func decodeState(data []byte) (version uint64, name string, st queue.State, err error) {
	rest, ok := bytes.CutPrefix(data, []byte(magic))
	if !ok || len(rest) < 4 {
		return 0, "", nil, errNoState
	}
	sum := binary.LittleEndian.Uint32(rest)
	d := decoder{rest: rest[4:]}
	d.rest = d.take(d.number())
	if d.bad || crc32.ChecksumIEEE(d.rest) != sum {
		return 0, "", nil, errNoState
	}
	version, name = d.number(), d.text()
	n := d.number()
	if n > uint64(len(d.rest)) { // an entry has more than a byte
		return 0, "", nil, errNoState
	}
	st = make(queue.State, n)
	for i := range st {
		d.entry(&st[i])
	}
	if d.bad {
		return 0, "", nil, errNoState
	}
	return version, name, st, nil
}

// decoder reads what the append functions wrote. Once bad, it returns zero values.
type decoder struct {
	rest []byte
	bad  bool
}

func (d *decoder) take(n uint64) []byte {
	if d.bad || n > uint64(len(d.rest)) {
		d.bad = true
		return nil
	}
	taken := d.rest[:n]
	d.rest = d.rest[n:]
	return taken
}

func (d *decoder) number() uint64 {
	n, size := binary.Uvarint(d.rest)
	if size <= 0 {
		d.bad = true
		return 0
	}
	d.take(uint64(size))
	return n
}

func (d *decoder) text() string { return string(d.take(d.number())) }

func (d *decoder) octet() byte {
	if b := d.take(1); len(b) == 1 {
		return b[0]
	}
	return 0
}

func (d *decoder) lock() (l backends.Lock) {
	l.First, l.Last, l.Mode = d.number(), d.number(), backends.Mode(d.octet())
	return l
}

func (d *decoder) entry(e *queue.Entry) {
	e.ID, e.Session, e.Lock = d.text(), d.text(), d.lock()
	e.Hint, e.YieldTo, e.Granted = backends.Hint(d.octet()), backends.Hint(d.octet()), d.octet() != 0
	e.Token, e.Seq = d.number(), d.number()
	for n := d.number(); n > 0 && !d.bad; n-- {
		e.Held = append(e.Held, d.lock())
	}
}
