// The writer does to a folder what its arguments say, then waits to be ended.
//
//	writer fill DIR MEBIBYTES     one file of that size
//	writer nest DIR LEVELS        folders in folders, deeper than any path
//	writer say MEBIBYTES          as much to standard output
//	writer wait                   nothing
//	writer answer                 a server on :8080 that fails its probe with words of its own
package main

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

func number(text string) int {
	value, err := strconv.Atoi(text)
	if err != nil {
		panic(err)
	}
	return value
}

func fill(dir string, mebibytes int) error {
	file, err := os.Create(dir + "/filled")
	if err != nil {
		return err
	}
	defer file.Close()
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i)
	}
	for range mebibytes {
		if _, err := file.Write(block); err != nil {
			return err
		}
	}
	return file.Sync()
}

func nest(dir string, levels int) error {
	if err := os.Chdir(dir); err != nil {
		return err
	}
	for range levels {
		if err := os.Mkdir("d", 0o755); err != nil {
			return err
		}
		if err := os.Chdir("d"); err != nil {
			return err
		}
	}
	return nil
}

func say(mebibytes int) {
	line := strings.Repeat("x", 1023)
	for range mebibytes << 10 {
		fmt.Println(line)
	}
}

func answer() error {
	return http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusTeapot)
		fmt.Fprint(w, "\x1b[31mred\x1b[0m\r\n\u202eright to left\u0000"+strings.Repeat("long ", 10000))
	}))
}

func main() {
	var err error
	switch os.Args[1] {
	case "fill":
		err = fill(os.Args[2], number(os.Args[3]))
	case "nest":
		err = nest(os.Args[2], number(os.Args[3]))
	case "say":
		say(number(os.Args[2]))
	case "answer":
		err = answer()
	}
	fmt.Println("done:", err)
	for {
		time.Sleep(time.Hour)
	}
}
