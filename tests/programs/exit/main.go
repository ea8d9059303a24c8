// Exit ends with the code that its argument names, after a line on each output.
package main

import (
	"fmt"
	"os"
	"strconv"
)

func main() {
	fmt.Println("out")
	fmt.Fprintln(os.Stderr, "err")
	if len(os.Args) > 1 {
		code, err := strconv.Atoi(os.Args[1])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		os.Exit(code)
	}
}
