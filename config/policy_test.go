package config

import (
	"strings"
	"testing"
	"time"
)

func TestMatch(t *testing.T) {
	for _, test := range []struct {
		pattern, name string
		want          bool
	}{
		{"a", "a", true},
		{"a", "b", false},
		{"a", "a/b", false},
		{"a/b", "a", false},
		{"*", "a", true},
		{"*", "a/b", false},
		{"*.lock", "x.lock", true},
		{"*.lock", "d/x.lock", false},
		{"etl/*", "etl/nightly", true},
		{"etl/*", "etl/a/b", false},
		{"etl/*", "etl", false},
		{"etl/?", "etl/ü", true},
		{"[a-c]x", "bx", true},
		{"[^a-c]x", "bx", false},
		{`\*`, "*", true},
		{`\*`, "a", false},
		{"**", "a", true},
		{"**", "a/b/c", true},
		{"**", "", true},
		{"a/**", "a", true},
		{"a/**", "a/b/c", true},
		{"a/**", "ab", false},
		{"**/x", "x", true},
		{"**/x", "a/b/x", true},
		{"**/x", "a/b/xy", false},
		{"**/x", "a/x/b", false},
		{"a/**/z", "a/z", true},
		{"a/**/z", "a/b/c/z", true},
		{"a/**/z", "a/b/c/z/y", false},
		{"**/a/**/b", "x/a/y/a/z/b", true},
		{"**/a/**/b", "x/b/y/a", false},
		{"**/*.d/**", "x/y.d/z", true},
		{"**/**", "a", true},
		{"**/a/b", "a/a/b", true},
		{"a", "", false},
		{"[", "[", false},
	} {
		if got := Match(test.pattern, test.name); got != test.want {
			t.Errorf("Match(%q, %q) = %v", test.pattern, test.name, got)
		}
	}
}

// slowMatch is the definition, without regard to time.
func slowMatch(pattern, name []string) bool {
	if len(pattern) == 0 {
		return len(name) == 0
	}
	if pattern[0] == anyDepth {
		return slowMatch(pattern[1:], name) || len(name) > 0 && slowMatch(pattern, name[1:])
	}
	return len(name) > 0 && matchComponent(pattern[0], name[0]) && slowMatch(pattern[1:], name[1:])
}

// TestMatchAgainstDefinition tries all patterns of up to five components from
// {a, b, *, **} on all names of up to five components from {a, b}.
func TestMatchAgainstDefinition(t *testing.T) {
	var patterns, names [][]string
	var grow func(into *[][]string, alphabet, prefix []string)
	grow = func(into *[][]string, alphabet, prefix []string) {
		if len(prefix) > 0 {
			*into = append(*into, append([]string(nil), prefix...))
		}
		if len(prefix) == 5 {
			return
		}
		for _, letter := range alphabet {
			grow(into, alphabet, append(prefix, letter))
		}
	}
	grow(&patterns, []string{"a", "b", "*", "**"}, nil)
	grow(&names, []string{"a", "b"}, nil)
	for _, pattern := range patterns {
		for _, name := range names {
			got := Match(strings.Join(pattern, "/"), strings.Join(name, "/"))
			if want := slowMatch(pattern, name); got != want {
				t.Fatalf("Match(%v, %v) = %v, want %v", pattern, name, got, want)
			}
		}
	}
}

// TestMatchIsQuick: a pattern that makes backtracking matchers explode.
func TestMatchIsQuick(t *testing.T) {
	pattern := strings.Repeat("**/a/", 100) + "b"
	name := strings.TrimSuffix(strings.Repeat("a/", 512), "/")
	done := make(chan bool, 1)
	go func() { done <- Match(pattern, name) }()
	select {
	case got := <-done:
		if got {
			t.Error("matched")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("still matching after 10 s")
	}
}

func TestFor(t *testing.T) {
	c, err := Parse("t.yml", []byte(`
lock_on_open: never
no_write_permission: skip
policies:
  - names: 'etl/**'
    lock_on_open: always
  - names: 'etl/nightly'      # comes second: never asked
    lock_on_open: auto
  - names: '*.lck'
    no_write_permission: lock
backends: [{type: file, config: {path: /x}}]
`))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]Policy{
		"etl/nightly": {LockAlways, NoWriteSkip, OnLost{}},
		"etl":         {LockAlways, NoWriteSkip, OnLost{}},
		"a.lck":       {LockNever, NoWriteLock, OnLost{}},
		"d/a.lck":     {LockNever, NoWriteSkip, OnLost{}},
		"other":       {LockNever, NoWriteSkip, OnLost{}},
	} {
		if got := c.For(name); got != want {
			t.Errorf("For(%q) = %v, want %v", name, got, want)
		}
	}
}
