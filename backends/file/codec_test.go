package file

import (
	"bytes"
	"reflect"
	"testing"

	"lockfs/backends"
	"lockfs/backends/queue"
)

func sample() queue.State {
	return queue.State{
		{ID: "a", Session: "S", Lock: writeAll, Granted: true, Token: 1<<64 - 1, Seq: 7, Hint: backends.ByCallOnWritable},
		{ID: "b", Session: "T", Lock: backends.Lock{Range: backends.Range{First: backends.MaxByte, Last: backends.MaxByte}, Mode: backends.Read},
			Held: []backends.Lock{writeAll, {Mode: backends.Read}}, YieldTo: backends.ByCall},
		{},
	}
}

func TestCodec(t *testing.T) {
	for _, st := range []queue.State{sample(), {}, sample()[1:]} {
		for _, name := range []string{"", "x", "\xff/\x01\n"} {
			data := encodeState(9, name, st)
			version, gotName, got, err := decodeState(append(data, "   padding"...))
			if err != nil || version != 9 || gotName != name || !reflect.DeepEqual(got, st) {
				t.Fatalf("%q %+v became %q %+v, %v", name, st, gotName, got, err)
			}
			for i := range data { // torn anywhere, or a bit turned
				if _, _, _, err := decodeState(data[:i]); err == nil {
					t.Fatalf("the first %d of %d bytes are taken for a state", i, len(data))
				}
				bad := bytes.Clone(data)
				bad[i] ^= 4
				if v, n, st2, err := decodeState(bad); err == nil && (v != 9 || n != name || !reflect.DeepEqual(st2, st)) {
					t.Fatalf("with byte %d changed it is taken for %q %+v", i, n, st2)
				}
			}
		}
	}
}

func FuzzDecodeState(f *testing.F) {
	f.Add(encodeState(1, "name", sample()))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, name, st, err := decodeState(data)
		if err == nil && len(st) > len(data) {
			t.Fatalf("%q has %d entries in %d bytes", name, len(st), len(data))
		}
	})
}
