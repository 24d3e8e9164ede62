//! A web application as WebAssembly, by the CGI convention (RFC 3875): the request's head is in the environment and its
//! body on standard input; headers, an empty line and the body go to standard output.

use std::env;

fn main() {
    let path = env::var("PATH_INFO").unwrap_or_default();
    let name = match path.trim_matches('/') {
        "" => "world",
        name => name,
    };
    println!("Content-Type: application/json\n");
    println!("{{\"hello\": {name:?}}}");
}
