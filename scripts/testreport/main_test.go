package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	const (
		passed = `{"Action":"output","Package":"p","Test":"A","Output":"quiet\n"}
{"Action":"pass","Package":"p","Test":"A"}
`
		end = `{"Action":"pass","Package":"p","Elapsed":1.5}
`
	)
	for _, test := range []struct {
		name, in string
		good     bool
		words    []string
	}{
		{"good", passed + end, true, []string{"pass p 1.5s\n", "1 tests passed, 0 failed, 0 skipped"}},
		{"nothing ran", "", false, []string{"0 tests passed"}},
		{"no tests in the package", `{"Action":"skip","Package":"q"}` + "\n" + passed + end, true, []string{"skip q"}},
		{"failed", passed + `{"Action":"output","Package":"p","Test":"B","Output":"why\n"}` + "\n" + `{"Action":"fail","Package":"p","Test":"B"}` + "\n" +
			`{"Action":"fail","Package":"p"}` + "\n", false, []string{"why\n", "1 failed", "1 packages failed"}},
		{"skipped", passed + `{"Action":"skip","Package":"p","Test":"C"}` + "\n" + end, false, []string{"SKIPPED p C"}},
		{"not built", passed + end + `{"ImportPath":"q","Action":"build-output","Output":"undefined: x\n"}` + "\n" + `{"ImportPath":"q","Action":"build-fail"}`, false, []string{"undefined: x"}},
		{"panic outside of a test", passed + `{"Action":"output","Package":"p","Output":"panic: x\n"}` + "\n" + `{"Action":"fail","Package":"p"}`, false, []string{"panic: x"}},
		{"go's own words", "go: no module\n" + passed + end, true, []string{"go: no module\n"}},
	} {
		var out strings.Builder
		if good := report(strings.NewReader(test.in), &out); good != test.good {
			t.Errorf("%s: good is %v\n%s", test.name, good, &out)
		}
		for _, word := range test.words {
			if !strings.Contains(out.String(), word) {
				t.Errorf("%s: %q is not in\n%s", test.name, word, &out)
			}
		}
		if strings.Contains(out.String(), "quiet") {
			t.Errorf("%s: the output of a test that passed is shown", test.name)
		}
	}
}
