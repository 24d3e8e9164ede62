// Searches HTTP's status codes. A CGI program by hand (RFC 3875): without net/http a module is smaller and sooner compiled.
package main

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"log"
	"net/url"
	"os"
	"strings"
)

//go:embed statuses.txt
var statuses string

type status struct {
	Code    string `json:"code"`
	Name    string `json:"name"`
	Meaning string `json:"meaning"`
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("search: ")
	query, err := url.ParseQuery(os.Getenv("QUERY_STRING"))
	if err != nil {
		reply("400 Bad Request", map[string]string{"error": err.Error()})
		return
	}
	reply("200 OK", find(query.Get("q")))
}

func find(words string) []status {
	found := []status{}
	for _, line := range strings.Split(strings.TrimSpace(statuses), "\n") {
		if strings.Contains(strings.ToLower(line), strings.ToLower(words)) {
			fields := strings.SplitN(line, "|", 3)
			found = append(found, status{fields[0], fields[1], fields[2]})
		}
	}
	return found
}

func reply(status string, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("Status: %s\nContent-Type: application/json\n\n%s\n", status, body)
}
