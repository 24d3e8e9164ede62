//! A connection that client and program agree to go on with in another protocol, a WebSocket most of the time (RFC 9110,
//! section 7.8): from then on bytes are passed on as they come, both ways.

use std::sync::Arc;

use http::header::{CONNECTION, UPGRADE};
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

use super::connection::Connection;
use super::head::has_token;
use super::upstream::Upstream;
use crate::event::Body;

/// The client's end of the connection, if it wants to go on in another protocol and can.
pub fn wanted(request: &mut Request<Body>) -> Option<OnUpgrade> {
    let headers = request.headers();
    let asks = request.version() == Version::HTTP_11
        && has_token(headers, &CONNECTION, "upgrade")
        // HTTP/2 instead of HTTP/1.1 is between the client and us.
        && headers.get(UPGRADE).is_some_and(|protocol| !protocol.as_bytes().starts_with(b"h2"));
    asks.then(|| request.extensions_mut().remove::<OnUpgrade>()).flatten()
}

/// Has the two ends pass on what comes, once the reply, which is a `101`, is with the client. `upstream` is in use until
/// one of them ends it.
pub fn pass_on(upstream: Arc<Upstream>, connection: Connection, reply: &mut Response<Incoming>, client: OnUpgrade) {
    let program = hyper::upgrade::on(reply);
    tokio::spawn(async move {
        let _in_use = upstream;
        connection.finish().await;
        let (program, client) = match tokio::join!(program, client) {
            (Ok(program), Ok(client)) => (program, client),
            (Err(error), _) | (_, Err(error)) => {
                tracing::debug!("an upgrade came to nothing: {error}");
                return;
            }
        };
        // How either of them ends it is the other's affair.
        let _ = copy_bidirectional(&mut TokioIo::new(program), &mut TokioIo::new(client)).await;
    });
}
