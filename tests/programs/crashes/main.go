// Crashes ends with 1 after a line that says why.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "cannot read config: no such file")
	os.Exit(1)
}
