// Pid prints a greeting and its process id, and ends.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Println("Hello, World!")
	fmt.Println("pid:", os.Getpid())
}
