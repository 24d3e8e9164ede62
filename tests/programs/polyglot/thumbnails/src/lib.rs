//! Makes small pictures of the shop's large ones: `/thumbnails/lamp.png?width=96`. A `wasi:http/proxy` component.

mod picture;

use std::io::Write as _;

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

wasip2::http::proxy::export!(Thumbnails);

/// The pictures that there are, by their names.
const PICTURES: [(&str, &[u8]); 3] = [
    ("lamp", include_bytes!("../../public/pictures/lamp.png")),
    ("chair", include_bytes!("../../public/pictures/chair.png")),
    ("kettle", include_bytes!("../../public/pictures/kettle.png")),
];

const USUAL_WIDTH: u32 = 128;

struct Thumbnails;

impl Guest for Thumbnails {
    fn handle(request: IncomingRequest, response: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        match thumbnail(&target) {
            Ok(png) => reply(response, 200, "image/png", &png),
            Err((status, problem)) => reply(response, status, "text/plain", format!("{problem}\n").as_bytes()),
        }
    }
}

/// The picture that is asked for, or a status and what is wrong.
fn thumbnail(target: &str) -> Result<Vec<u8>, (u16, String)> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let name = path.rsplit('/').next().and_then(|file| file.strip_suffix(".png"));
    let picture = PICTURES.iter().find(|(known, _)| Some(*known) == name);
    let (_, original) = picture.ok_or_else(|| (404, format!("there is no picture {path}")))?;
    let width = match query.split('&').find_map(|pair| pair.strip_prefix("width=")) {
        Some(word) => word.parse().map_err(|_| (400, format!("{word:?} is no width")))?,
        None => USUAL_WIDTH,
    };
    picture::shrunk(original, width).map_err(|problem| (400, problem))
}

fn reply(response: ResponseOutparam, status: u16, content_type: &str, body: &[u8]) {
    if let Err(reason) = try_to_reply(response, status, content_type, body) {
        eprintln!("the response could not be sent: {reason}");
    }
}

fn try_to_reply(response: ResponseOutparam, status: u16, content_type: &str, content: &[u8]) -> Result<(), String> {
    let fields = Fields::new();
    fields
        .append("content-type", content_type.as_bytes())
        .map_err(|error| error.to_string())?;
    let head = OutgoingResponse::new(fields);
    head.set_status_code(status)
        .map_err(|()| format!("the host refuses status {status}"))?;
    let body = head.body().map_err(|()| "the response has no body")?;
    ResponseOutparam::set(response, Ok(head));
    let mut stream = body.write().map_err(|()| "the body has no stream")?;
    stream.write_all(content).map_err(|error| error.to_string())?;
    stream.blocking_flush().map_err(|error| error.to_string())?;
    // A stream is a child of its body, and has to go first.
    drop(stream);
    OutgoingBody::finish(body, None).map_err(|error| error.to_string())
}
