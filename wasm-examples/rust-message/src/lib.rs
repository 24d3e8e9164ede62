//! A component for both kinds of event: HTTP requests by `wasi:http/proxy`, and network messages by `polyinit:event/message`.

use std::io::Write;

use wasip2::exports::http::incoming_handler;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

wit_bindgen::generate!({ path: "../wit", world: "message-handler" });

use exports::polyinit::event::message;

struct Component;

wasip2::http::proxy::export!(Component);
export!(Component);

impl message::Guest for Component {
    /// The answer is JSON here, and could be anything.
    fn handle(message: message::Message) -> Result<Vec<u8>, String> {
        if message.body.contains("\"fail\"") {
            return Err("this message asked for a failure".into());
        }
        if message.body.contains("\"panic\"") {
            panic!("this message asked for a panic");
        }
        Ok(format!("{{\"language\": \"rust\", \"bytes\": {}}}", message.body.len()).into_bytes())
    }
}

impl incoming_handler::Guest for Component {
    fn handle(_request: IncomingRequest, response: ResponseOutparam) {
        let head = OutgoingResponse::new(Fields::new());
        let Ok(body) = head.body() else { return };
        ResponseOutparam::set(response, Ok(head));
        let Ok(mut stream) = body.write() else { return };
        if stream.write_all(b"Send me messages\n").and_then(|()| Write::flush(&mut stream)).is_err() {
            return; // The client is gone.
        }
        drop(stream);
        let _ = OutgoingBody::finish(body, None);
    }
}
