// Go's RSA key generator as a peer of scripts/bench: a line "rsa_2048" in, nanoseconds out.
package main

import (
	"bufio"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"time"
)

func main() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		bits, err := strconv.Atoi(strings.TrimPrefix(lines.Text(), "rsa_"))
		if err != nil {
			log.Fatal(err)
		}
		start := time.Now()
		if _, err := rsa.GenerateKey(rand.Reader, bits); err != nil {
			log.Fatal(err)
		}
		fmt.Println(time.Since(start).Nanoseconds())
	}
}
