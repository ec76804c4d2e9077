package fs

import (
	"testing"
	"unsafe"
)

// TestSizes: there is one of each for every name that is open. See the test of this name in fs/locks.
func TestSizes(t *testing.T) {
	for what, size := range map[string][2]uintptr{
		"a handle":               {unsafe.Sizeof(handle{}), 64},
		"an open file":           {unsafe.Sizeof(file{}), 64},
		"what is known of it":    {unsafe.Sizeof(attrs{}), 48},
		"a node":                 {unsafe.Sizeof(node{}), 80},
		"a handle for the guard": {unsafe.Sizeof(description{}), 16},
	} {
		if size[0] > size[1] {
			t.Errorf("%s takes %d bytes, more than %d", what, size[0], size[1])
		}
	}
}
