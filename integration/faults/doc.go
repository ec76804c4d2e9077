// Package faults shows that locks stay exclusive whatever breaks: real mounts on real servers, broken on a
// seed, and a record of what every holder saw.
//
// The one idea: all processes of a run share one clock (CLOCK_BOOTTIME), so who held what when
// can be put side by side afterwards. A holder counts as inside for as long as it can prove it, and no longer:
//
//   - from when its flock call has returned,
//   - to when it began to release, where the release succeeded; else to the last time when it
//     began a call on its descriptor that then succeeded (on_lost: eio), or to the last time when it ran at all (on_lost: KILL).
//
// So an overlap that is found is one, however slow or late the processes of the tests are.
//
//	worker_test.go     the programs that take locks, and what they write down
//	cluster_test.go    servers and what is left in them; node_test.go, proxy_test.go: mounts, and their way to the server
//	faults_test.go     what is broken, and how it is mended; run_test.go: when, and one run from its start to the report
//	ensemble_test.go   what can break in an ensemble of ZooKeeper servers
//	sentinel_test.go   what can break where Sentinels promote a replica
//	disk_test.go       disks that are full, read-only, gone, under the file back end and under Redis
//	history_test.go    from the records to grants
//	check_test.go      what has to hold of grants; checker_test.go: that the checks find what does not
//	refused_test.go    that no call is refused what nobody had; refusedcheck_test.go: that this is found
//	crew_test.go       the workers of a run
//	soak_test.go       the long runs, with the build tag soak: make soak
//	plant_test.go      lockfs with a bug planted, which a run must find; the same tag
//
// LOCKFS_FAULT_SEED repeats a run's plan. What the machine makes of it differs from run to run.
package faults
