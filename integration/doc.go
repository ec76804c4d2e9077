// Package integration holds the tests of lockfs as its users have it: mounts
// in processes of their own, real servers, and the programs that take locks.
//
// The one idea: a test says what each of several programs on several nodes does, step by
// step, and what each must get, on every back end. See env_test.go for the nodes, client_test.go for
// programs under a test's control and program_test.go for those that are as they are.
//
// The tests need Debian's packages that they name when one is missing; nothing
// is skipped. All processes are started by the tests and ended by them.
package integration
