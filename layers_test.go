package lockfs_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// layers are the parts of the house from left to right (docs/design.md): a
// package may import from its own part and from those after it.
var layers = []string{"cmd", "fs", "fs/locks", "backends/all", "backends/file", "backends/redis", "backends/zookeeper", "backends/queue", "backends/record", "backends/lease", "backends", "config"}

// TestImportsRunOneWay reads the imports of everything that is not a test.
func TestImportsRunOneWay(t *testing.T) {
	checked := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		from := layer(filepath.ToSlash(filepath.Dir(path)))
		if from < 0 {
			return nil // test helpers and the integration tests
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, imported := range file.Imports {
			name, ours := strings.CutPrefix(strings.Trim(imported.Path.Value, `"`), "lockfs/")
			if !ours {
				continue
			}
			checked++
			if to := layer(name); to < from {
				t.Errorf("%s imports lockfs/%s, which is to its left", path, name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if checked == 0 {
		t.Fatal("no import was checked")
	}
}

// layer returns the index of the longest entry of layers that holds a package; -1: none.
func layer(pkg string) int {
	best := -1
	for i, l := range layers {
		if (pkg == l || strings.HasPrefix(pkg, l+"/")) && (best < 0 || len(l) > len(layers[best])) {
			best = i
		}
	}
	if strings.HasPrefix(pkg, "backends/backendtest") || strings.HasPrefix(pkg, "backends/testserver") {
		return -1
	}
	return best
}
