// Package answer is written in C.
package answer

// static int answer(void) { return 42; }
import "C"

// Get asks C.
func Get() int {
	return int(C.answer())
}
