// Cat copies its input to its output, says on the other one how much it was, and ends with 3.
package main

import (
	"fmt"
	"io"
	"os"
)

func main() {
	n, err := io.Copy(os.Stdout, os.Stdin)
	fmt.Fprintln(os.Stderr, n, "bytes", err)
	os.Exit(3)
}
