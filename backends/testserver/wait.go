package testserver

import (
	"testing"
	"time"
)

// Until asks again and again until the answer is yes, at most for limit: then it returns false. It is for what a test
// has to wait for without being told.
func Until(limit time.Duration, ok func() bool) bool {
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// Within is Until for what must come: else the test ends.
func Within(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	if !Until(limit, ok) {
		t.Fatalf("not within %v: %s", limit, what)
	}
}
