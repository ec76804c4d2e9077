// Command section is the Go idiom of the README.
package main

import (
	"fmt"
	"log"

	"github.com/gofrs/flock"
)

func main() {
	lock := flock.New("/mnt/locks/shard-7")
	if err := lock.Lock(); err != nil { // waits for its turn
		log.Fatal(err)
	}
	fmt.Println("only one node is here")
	if err := lock.Unlock(); err != nil {
		log.Fatal(err)
	}
}
