// Recorder answers every request with what it saw of it, and keeps a list of those that came whole: `GET /log` tells it.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"sync"
)

func main() {
	address := os.Getenv("ADDRESS")
	if address == "" {
		address = ":8080"
	}
	var lock sync.Mutex
	var seen []string
	handler := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/log" {
			lock.Lock()
			defer lock.Unlock()
			for _, line := range seen {
				fmt.Fprintln(w, line)
			}
			return
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		line := r.Method + " " + r.URL.Path
		if r.RequestURI != "*" {
			lock.Lock()
			seen = append(seen, line)
			lock.Unlock()
		}
		w.Header().Set("X-Saw", line)
		w.Header()["X-Client"] = r.Header.Values("X-Forwarded-For")
		fmt.Fprintln(w, line)
	}
	log.Fatal(http.ListenAndServe(address, http.HandlerFunc(handler)))
}
