//go:build race

package faults

// raced: lockfs is built as the tests are, so that the race detector watches the mounts too.
const raced = true
