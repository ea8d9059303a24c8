// Greeter speaks first, as SMTP and MySQL servers do, and then answers each line with its number.
package main

import (
	"bufio"
	"fmt"
	"log"
	"net"
)

// Version tells replacements apart.
var version = "1"

func main() {
	listener, err := net.Listen("tcp", ":8080")
	if err != nil {
		log.Fatal(err)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go serve(conn)
	}
}

func serve(conn net.Conn) {
	defer conn.Close()
	fmt.Fprintf(conn, "220 greeter %s ready\r\n", version)
	lines := bufio.NewScanner(conn)
	for n := 1; lines.Scan(); n++ {
		if lines.Text() == "QUIT" {
			fmt.Fprint(conn, "221 bye\r\n")
			return
		}
		fmt.Fprintf(conn, "250 %d %s\r\n", n, lines.Text())
	}
}
