// Needscgo calls C, which gantry builds without.
package main

import (
	"fmt"

	"example.com/needscgo/answer"
)

func main() {
	fmt.Println(answer.Get())
}
