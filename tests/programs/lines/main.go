// Lines writes a numbered line ten times a second, every tenth to standard error, and serves the last number. It ends
// after as many lines as its argument says.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"time"
)

func main() {
	var last atomic.Int64
	var end int64
	if len(os.Args) > 1 {
		number, err := strconv.ParseInt(os.Args[1], 10, 64)
		if err != nil {
			log.Fatal(err)
		}
		end = number
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, last.Load())
	})
	go func() {
		for range time.Tick(100 * time.Millisecond) {
			out := os.Stdout
			number := last.Add(1)
			if number%10 == 0 {
				out = os.Stderr
			}
			fmt.Fprintln(out, "line", number)
			if number == end {
				os.Exit(0)
			}
		}
	}()
	log.Fatal(http.ListenAndServe(":8080", nil))
}
