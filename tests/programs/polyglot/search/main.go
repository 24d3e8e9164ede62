// Searches the shop. A CGI program by hand (RFC 3875): the request is in the environment, and the response is written to
// stdout. Without net/http the module is a third of the size, and as much sooner compiled.
package main

import (
	_ "embed"
	"encoding/json"
	"net/url"
	"os"
	"strings"
)

// The API's own file: the build puts it here.
//
//go:embed catalogue.json
var catalogue []byte

type product struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	Price int    `json:"price"`
	Text  string `json:"text"`
}

func main() {
	query, err := url.ParseQuery(os.Getenv("QUERY_STRING"))
	if err != nil {
		reply("400 Bad Request", map[string]string{"error": "the query cannot be read: " + err.Error()})
		return
	}
	var products []product
	if err := json.Unmarshal(catalogue, &products); err != nil {
		reply("500 Internal Server Error", map[string]string{"error": "the catalogue cannot be read: " + err.Error()})
		return
	}
	reply("200 OK", find(products, query.Get("q")))
}

// find gives the products that have all of the words in them, in whichever case.
func find(products []product, words string) []product {
	found := []product{}
	for _, product := range products {
		text := strings.ToLower(product.Name + " " + product.Text)
		all := true
		for _, word := range strings.Fields(strings.ToLower(words)) {
			all = all && strings.Contains(text, word)
		}
		if all {
			found = append(found, product)
		}
	}
	return found
}

func reply(status string, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		status, body = "500 Internal Server Error", []byte("{}")
	}
	os.Stdout.WriteString("Status: " + status + "\nContent-Type: application/json\n\n" + string(body) + "\n")
}
