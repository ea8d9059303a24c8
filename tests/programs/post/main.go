// Post reads a request's body and answers slowly with its length and checksum. It ends at SIGTERM at once, as a
// program without a handler does: whoever cuts its requests off shows it.
package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"time"
)

// Version tells replacements apart.
var version = "1"

func main() {
	pause := 200 * time.Millisecond
	if text := os.Getenv("PAUSE"); text != "" {
		parsed, err := time.ParseDuration(text)
		if err != nil {
			log.Fatal(err)
		}
		pause = parsed
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		n, err := io.Copy(sum, r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		// The head goes out first, so that a cut shows as a torn answer.
		w.Header().Set("X-Version", version)
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		time.Sleep(pause)
		fmt.Fprintf(w, "%d %x\n", n, sum.Sum(nil))
	})
	log.Fatal(http.ListenAndServe(":8080", nil))
}
