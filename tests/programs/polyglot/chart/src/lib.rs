//! Draws a bar chart of the numbers in a query (`/chart?v=3,1,4`) as SVG. A `wasi:http/proxy` component.

use std::fmt::Write as _;
use std::io::Write as _;

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

wasip2::http::proxy::export!(Chart);

struct Chart;

impl Guest for Chart {
    fn handle(request: IncomingRequest, response: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        match numbers(&target) {
            Ok(numbers) => reply(response, 200, "image/svg+xml", &draw(&numbers)),
            Err(word) => reply(
                response,
                400,
                "text/plain",
                &format!("not a number from 0 up: {word:?}\n"),
            ),
        }
    }
}

/// The numbers of the query's `v`, or the first word there that is none.
fn numbers(target: &str) -> Result<Vec<f64>, String> {
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let list = query.split('&').find_map(|pair| pair.strip_prefix("v=")).unwrap_or("");
    list.split(',')
        .filter(|word| !word.is_empty())
        .map(|word| match word.parse::<f64>() {
            Ok(number) if number.is_finite() && number >= 0.0 => Ok(number),
            _ => Err(word.to_string()),
        })
        .collect()
}

fn draw(numbers: &[f64]) -> String {
    const HEIGHT: f64 = 100.0;
    const STEP: usize = 24;
    let largest = numbers.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{HEIGHT}\">\n",
        STEP * numbers.len().max(1)
    );
    for (place, number) in numbers.iter().enumerate() {
        let height = HEIGHT * number / largest;
        let (x, y, width) = (STEP * place, HEIGHT - height, STEP - 4);
        // Writing to a String cannot fail.
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{y:.1}\" width=\"{width}\" height=\"{height:.1}\" fill=\"#28c\"><title>{number}</title></rect>"
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn reply(response: ResponseOutparam, status: u16, content_type: &str, text: &str) {
    if let Err(reason) = try_to_reply(response, status, content_type, text) {
        eprintln!("chart: the response could not be sent: {reason}");
    }
}

fn try_to_reply(response: ResponseOutparam, status: u16, content_type: &str, text: &str) -> Result<(), String> {
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
    stream.write_all(text.as_bytes()).map_err(|error| error.to_string())?;
    stream.blocking_flush().map_err(|error| error.to_string())?;
    // A stream is a child of its body, and has to go first.
    drop(stream);
    OutgoingBody::finish(body, None).map_err(|error| error.to_string())
}
