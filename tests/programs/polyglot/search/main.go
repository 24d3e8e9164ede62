// Searches HTTP's status codes. A CGI program by hand (RFC 3875): the request is in the environment, and the response is
// written to stdout. Without net/http and encoding/json the module is a third of the size, and as much sooner compiled.
package main

import (
	_ "embed"
	"net/url"
	"os"
	"strings"
)

//go:embed statuses.txt
var statuses string

func main() {
	query, err := url.ParseQuery(os.Getenv("QUERY_STRING"))
	if err != nil {
		reply("400 Bad Request", "the query cannot be read: "+err.Error()+"\n")
		return
	}
	reply("200 OK", find(query.Get("q")))
}

// find gives the lines with the words in them, in whichever case.
func find(words string) string {
	var found strings.Builder
	for _, line := range strings.SplitAfter(statuses, "\n") {
		if strings.Contains(strings.ToLower(line), strings.ToLower(words)) {
			found.WriteString(line)
		}
	}
	if found.Len() == 0 {
		return "nothing found\n"
	}
	return found.String()
}

func reply(status, text string) {
	os.Stdout.WriteString("Status: " + status + "\nContent-Type: text/plain; charset=utf-8\n\n" + text)
}
