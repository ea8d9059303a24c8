// Stubborn serves and ignores SIGTERM: only SIGKILL ends it.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os/signal"
	"syscall"
)

func main() {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "still here")
	})
	log.Fatal(http.ListenAndServe(":8080", nil))
}
