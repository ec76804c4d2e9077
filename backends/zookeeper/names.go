package zookeeper

import (
	"fmt"
	"strconv"
	"strings"

	"lockfs/backends"
	"lockfs/backends/queue"
)

const hexDigits = "0123456789ABCDEF"

// escape turns any string of bytes into a znode name: "n", so that it is
// never empty, "." or "..", then the bytes, all but a safe set as %XX. It is injective.
func escape(s string) string {
	var b strings.Builder
	b.Grow(len(s) + 1)
	b.WriteByte('n')
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
			b.WriteByte(c)
		default:
			b.WriteByte('%')
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
		}
	}
	return b.String()
}

// unescape undoes escape; ok is false where escape can't have made s.
func unescape(s string) (name string, ok bool) {
	if !strings.HasPrefix(s, "n") {
		return "", false
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", false
		}
		c, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil {
			return "", false
		}
		b.WriteByte(byte(c))
		i += 2
	}
	return b.String(), escape(b.String()) == s
}

// kind says how an entry came to be.
type kind byte

const (
	waits kind = 'q' // a request that waits for its turn
	tries kind = 't' // a request that is taken back by its session unless it is granted at once
	kept  kind = 'k' // made in the place of a claim that was granted: it is granted
	// delayed is the marker of a claim whose session has a lock delay (delay.go): a claim too
	delayed kind = 'd'
)

// node is what the name of a claim's znode says.
type node struct {
	session string
	id      string // unique within the session
	kind    kind
	backends.Lock
	hint, yieldTo backends.Hint
	held          []backends.Lock
	// token is that of the claim in whose place Change has put this one, else 0.
	token uint64
	seq   int64  // the place in the line
	name  string // the znode's name
}

// prefix returns the name without the sequence number, which the server appends.
// The fields hold no '_', and nothing that a znode's name can't hold.
func (n node) prefix() string {
	held := make([]string, len(n.held))
	for i, l := range n.held {
		held[i] = lockName(l)
	}
	token := ""
	if n.token != 0 {
		token = strconv.FormatUint(n.token, 16)
	}
	return strings.Join([]string{n.session, n.id, string(rune(n.kind)), lockName(n.Lock),
		strconv.Itoa(int(n.hint)) + strconv.Itoa(int(n.yieldTo)), strings.Join(held, "+"), token, ""}, "_")
}

// lockName encodes a lock: "w", or "r10-1f".
func lockName(l backends.Lock) string {
	mode := "r"
	if l.Mode == backends.Write {
		mode = "w"
	}
	if l.Range == backends.Whole {
		return mode
	}
	return mode + strconv.FormatUint(l.First, 16) + "-" + strconv.FormatUint(l.Last, 16)
}

func parseLock(s string) (backends.Lock, error) {
	l := backends.Lock{Range: backends.Whole, Mode: backends.Read}
	if s == "" || s[0] != 'r' && s[0] != 'w' {
		return l, strconv.ErrSyntax
	}
	if s[0] == 'w' {
		l.Mode = backends.Write
	}
	if s = s[1:]; s == "" {
		return l, nil
	}
	first, last, ok := strings.Cut(s, "-")
	if !ok {
		return l, strconv.ErrSyntax
	}
	var err error
	if l.First, err = strconv.ParseUint(first, 16, 64); err != nil {
		return l, err
	}
	l.Last, err = strconv.ParseUint(last, 16, 64)
	return l, err
}

// parseNode undoes prefix. An error wraps backends.ErrForeign.
func parseNode(name string) (node, error) {
	n, err := parseFields(strings.Split(name, "_"))
	if err != nil {
		return n, fmt.Errorf("znode %q among the claims: %w", name, backends.ErrForeign)
	}
	n.name = name
	return n, nil
}

func parseFields(f []string) (node, error) {
	if len(f) != 8 || len(f[2]) != 1 || len(f[4]) != 2 {
		return node{}, strconv.ErrSyntax
	}
	n := node{session: f[0], id: f[1], kind: kind(f[2][0]),
		hint: backends.Hint(f[4][0] - '0'), yieldTo: backends.Hint(f[4][1] - '0')}
	var err error
	if n.Lock, err = parseLock(f[3]); err != nil {
		return n, err
	}
	if f[5] != "" {
		for s := range strings.SplitSeq(f[5], "+") {
			l, err := parseLock(s)
			if err != nil {
				return n, err
			}
			n.held = append(n.held, l)
		}
	}
	if f[6] != "" {
		if n.token, err = strconv.ParseUint(f[6], 16, 64); err != nil {
			return n, err
		}
	}
	n.seq, err = strconv.ParseInt(f[7], 10, 64)
	return n, err
}

func (n node) entry() queue.Entry {
	return queue.Entry{ID: n.id, Session: n.session, Lock: n.Lock, Held: n.held,
		Hint: n.hint, YieldTo: n.yieldTo, Granted: n.kind == kept || n.kind == delayed}
}
