//! A `wasi:cli/command` component of WASI 0.3, whose `run` is asynchronous, by the CGI convention: the request is in the
//! environment and on stdin, the reply goes to stdout. It echoes the body, as it comes.

use wasip3::cli::{environment, stdin, stdout};
use wasip3::{wit_bindgen, wit_stream};
use wit_bindgen::StreamResult;

wasip3::cli::command::export!(Component);

struct Component;

impl wasip3::exports::cli::run::Guest for Component {
    async fn run() -> Result<(), ()> {
        let (mut out, output) = wit_stream::new();
        let written = stdout::write_via_stream(output);
        let path = variable("PATH_INFO");
        let head = match path.as_str() {
            "/fail" => return Err(()),
            // What takes part in no exchange by HTTP has no head.
            _ if variable("EVENT_TYPE") == "message" => String::new(),
            _ => "Content-Type: application/octet-stream\n\n".to_owned(),
        };
        out.write_all(head.into_bytes()).await;
        if path == "/" {
            out.write_all(b"Hello from a WASI 0.3 command\n".to_vec()).await;
        } else {
            let (mut body, _how_it_ended) = stdin::read_via_stream();
            loop {
                let (status, piece) = body.read(Vec::with_capacity(64 << 10)).await;
                if !piece.is_empty() && !out.write_all(piece).await.is_empty() {
                    return Err(());
                }
                if !matches!(status, StreamResult::Complete(_)) {
                    break;
                }
            }
        }
        drop(out);
        written.await.map_err(drop)
    }
}

fn variable(name: &str) -> String {
    let all = environment::get_environment();
    all.into_iter().find_map(|(this, value)| (this == name).then_some(value)).unwrap_or_default()
}
