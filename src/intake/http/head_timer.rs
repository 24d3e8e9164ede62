//! The timer of one connection, which ends it if the head of a request takes too long.
//!
//! A timer is asked for with each request, and dropped when the head is there. To enter it into the runtime's list and
//! take it out again is a lock each that all threads share; to put off one that is kept is none.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};
use parking_lot::Mutex;

type Entered = Pin<Box<tokio::time::Sleep>>;

/// Made once for each connection.
#[derive(Clone, Default)]
pub(super) struct HeadTimer(Arc<Mutex<Option<Entered>>>);

impl HeadTimer {
    fn swap(&self, kept: Option<Entered>) -> Option<Entered> {
        std::mem::replace(&mut *self.0.lock(), kept)
    }
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        let sleep = match self.swap(None) {
            Some(mut kept) => {
                kept.as_mut().reset(deadline.into());
                kept
            }
            None => Box::pin(tokio::time::sleep_until(deadline.into())),
        };
        Box::pin(Lent {
            sleep: Some(sleep),
            timer: self.clone(),
        })
    }
}

/// Kept for the next request when this one doesn't need it any more.
struct Lent {
    sleep: Option<Entered>,
    timer: HeadTimer,
}

impl Future for Lent {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().poll(cx),
            None => Poll::Ready(()),
        }
    }
}

impl Sleep for Lent {}

impl Drop for Lent {
    fn drop(&mut self) {
        drop(self.timer.swap(self.sleep.take()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_that_is_used_again_has_the_new_time() {
        let timer = HeadTimer::default();
        drop(timer.sleep(Duration::from_secs(3600)));
        for milliseconds in [60, 10, 40] {
            let time = Duration::from_millis(milliseconds);
            let began = Instant::now();
            let slept = tokio::time::timeout(Duration::from_secs(60), timer.sleep(time));
            assert!(slept.await.is_ok() && began.elapsed() >= time);
        }
    }
}
