// Dial connects to each HOST:PORT that it is given and says "HOST:PORT open" if somebody there answers a line, else
// "HOST:PORT closed". `-hold COUNT` opens that many connections to each and keeps them silent for ten seconds instead.
package main

import (
	"flag"
	"fmt"
	"net"
	"time"
)

func main() {
	hold := flag.Int("hold", 0, "connections")
	flag.Parse()
	if *hold > 0 {
		var kept []net.Conn
		failed := 0
		for _, address := range flag.Args() {
			for range *hold {
				conn, err := net.DialTimeout("tcp", address, 5*time.Second)
				if err != nil {
					failed++
					continue
				}
				kept = append(kept, conn)
			}
		}
		time.Sleep(10 * time.Second)
		fmt.Println("held", len(kept), "failed", failed)
		return
	}
	for _, address := range flag.Args() {
		fmt.Println(address, try(address))
	}
}

func try(address string) string {
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return "closed"
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.0\r\nHost: x\r\n\r\n"); err != nil {
		return "closed"
	}
	if n, _ := conn.Read(make([]byte, 1)); n == 0 {
		return "closed"
	}
	return "open"
}
