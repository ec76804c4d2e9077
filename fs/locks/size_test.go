package locks

import (
	"testing"
	"unsafe"

	"lockfs/backends"
)

// TestSizes: there is one of each for every name that is held. The sizes are those that Go's allocator has room for; one byte
// more costs the whole way to the next of them: 16 bytes, say, and 2 MB in a mount with 100,000 names.
func TestSizes(t *testing.T) {
	for what, size := range map[string][2]uintptr{
		"a name":                   {unsafe.Sizeof(name{}), 208},
		"a held lock":              {unsafe.Sizeof(held{}), 64},
		"a claim":                  {unsafe.Sizeof(backends.Claim{}), 64},
		"what the watcher is told": {unsafe.Sizeof(told{}), 24},
	} {
		if size[0] > size[1] {
			t.Errorf("%s takes %d bytes, more than %d", what, size[0], size[1])
		}
	}
}
