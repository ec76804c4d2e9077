//go:build !race

package integration

// raced: lockfs is built as the tests are, so that benchmarks measure what users have.
const raced = false
