// Exit ends with the code that its first argument names, after a line on each output. With a second argument it first
// reads a byte from that file, which may be a FIFO.
package main

import (
	"fmt"
	"os"
	"strconv"
)

func main() {
	fmt.Println("out")
	fmt.Fprintln(os.Stderr, "err")
	if len(os.Args) > 2 {
		if err := wait(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
	}
	if len(os.Args) > 1 {
		code, err := strconv.Atoi(os.Args[1])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		os.Exit(code)
	}
}

// The file stays open: whoever holds a FIFO's other end sees the program end.
var gate *os.File

func wait(path string) (err error) {
	if gate, err = os.Open(path); err == nil {
		_, err = gate.Read(make([]byte, 1))
	}
	return err
}
