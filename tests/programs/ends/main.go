// Ends does its work and ends with 0: no service.
package main

import "fmt"

func main() {
	fmt.Println("done")
}
