// Package testserver starts the servers that tests need: real ones, each
// private to its test, on a free port of the loopback interface and with a data
// directory of its own. They end with the test, and with its process.
package testserver
