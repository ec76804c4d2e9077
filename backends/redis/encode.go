package redis

import (
	"fmt"
	"strconv"
	"strings"

	"lockfs/backends"
)

// specLength is the length of an encoded lock.
const specLength = 34

// encodeLock writes a lock as the scripts read it (lua/locks.lua): ranges in
// hexadecimal digits of fixed number, which compare as the numbers do.
func encodeLock(l backends.Lock, hint backends.Hint) string {
	return fmt.Sprintf("%d%d%016x%016x", uint8(l.Mode), uint8(hint), l.First, l.Last)
}

// encodeRequest adds the hint to yield to and the locks that the owner keeps.
func encodeRequest(req backends.Request) string {
	var s strings.Builder
	s.WriteString(encodeLock(req.Lock, req.Hint))
	s.WriteByte('0' + byte(req.YieldTo))
	for _, held := range req.Held {
		s.WriteString(encodeLock(held, 0))
	}
	return s.String()
}

// decodeHolder reads what the holders script returns of a claim.
func decodeHolder(id, spec, contended, token string) (backends.Holder, error) {
	var h backends.Holder
	end := strings.LastIndexByte(id, '/')
	if len(spec) != specLength || end < 0 {
		return h, fmt.Errorf("%w: claim %q of %q", backends.ErrForeign, id, spec)
	}
	first, err1 := strconv.ParseUint(spec[2:18], 16, 64)
	last, err2 := strconv.ParseUint(spec[18:], 16, 64)
	number, err3 := strconv.ParseUint(token, 10, 64)
	if err1 != nil || err2 != nil || err3 != nil {
		return h, fmt.Errorf("%w: claim %q of %q with token %q", backends.ErrForeign, id, spec, token)
	}
	h.Claim = backends.Claim{ID: id[end+1:], Hint: backends.Hint(spec[1] - '0'), Token: number, Seq: number, Contended: contended == "1",
		Lock: backends.Lock{Mode: backends.Mode(spec[0] - '0'), Range: backends.Range{First: first, Last: last}}}
	h.Session = id[:end]
	h.Node = nodeOf(h.Session)
	return h, nil
}
