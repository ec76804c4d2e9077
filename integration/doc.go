// Package integration holds the tests of lockfs as its users have it: mounts
// in processes of their own, real servers, and the programs that take locks.
//
// The one idea: a test says what each of several programs on several nodes does, step by
// step, and what each must get, on every back end. See env_test.go for the nodes, client_test.go for
// programs under a test's control and program_test.go for those that are as they are.
//
// Where docs/contract.md is tested, on two nodes and every back end:
//
//	flock, close, inheritance                flock_test.go
//	fcntl and OFD locks, F_GETLK, all doors  fcntl_test.go, ranges_test.go
//	open for writing                         open_test.go, auto_test.go
//	O_EXCL, mkdir, O_CREAT, link, rename     create_test.go, dotlock_test.go
//	waiting                                  waiting_test.go, cost_test.go
//	names and contents                       names_test.go, contents_test.go
//	when things fail                         failure_test.go
//	client programs                          lockers_test.go, python_test.go, java_test.go, gofrs_test.go
//	crowds, kills at random                  crowd_test.go
//	what it costs                            cost_test.go, bench*_test.go, package sim
//
// The tests need Debian's packages that they name when one is missing; nothing
// is skipped. All processes are started by the tests and ended by them.
package integration
