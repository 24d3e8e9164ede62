//! What tests of several engines need.

use std::time::Duration;

use http::Response;

use crate::event::Body;

/// How long anything may take that is not the test's matter.
pub const SECONDS: Duration = Duration::from_secs(30);

/// The whole body of a reply, as text.
pub async fn text(response: Response<Body>) -> String {
    let body = response.into_body().collect(64 << 20).await.expect("a whole body");
    String::from_utf8(body.to_vec()).expect("text")
}

/// Waits until `done`, looking again and again: for what the kernel tells nobody of.
pub async fn until(what: &str, done: impl Fn() -> bool) {
    let looking = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(SECONDS, looking)
        .await
        .unwrap_or_else(|_| panic!("waited in vain: {what}"));
}
