//! A task that wakes itself while it is polled, polled again at once.
//!
//! A connection and what answers it are one task, in which bodies go back and forth: each side wakes the other, and with
//! it the task that is being polled already. Schedulers take that for a task that yields. It goes to the end of the
//! queue, and another thread is woken to take it from there, to a core that has nothing of it in its cache.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// Polls in a row after which other tasks have their turn.
const IN_A_ROW: usize = 16;

/// Nobody has woken the task since it was polled last.
const IDLE: u8 = 0;
/// It is being polled.
const POLLED: u8 = 1;
/// It was woken, and will be polled.
const WOKEN: u8 = 2;

/// Polls `future` again as long as it was woken meanwhile.
pub(crate) struct Again<F> {
    future: Pin<Box<F>>,
    /// The task that polls it, with what wakes it from inside.
    task: Option<(Arc<Task>, Waker)>,
}

struct Task {
    state: AtomicU8,
    waker: Waker,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(WOKEN, Ordering::AcqRel) == IDLE {
            self.waker.wake_by_ref();
        }
    }
}

impl<F: Future> Again<F> {
    pub(crate) fn new(future: F) -> Self {
        Self {
            future: Box::pin(future),
            task: None,
        }
    }
}

impl<F: Future> Future for Again<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { future, task } = &mut *self;
        // Whoever polled it before, if somebody else did, need not be woken any more.
        let (task, waker) = match task {
            Some(task) if task.0.waker.will_wake(cx.waker()) => task,
            other => {
                let task = Arc::new(Task {
                    state: AtomicU8::new(IDLE),
                    waker: cx.waker().clone(),
                });
                other.insert((task.clone(), task.into()))
            }
        };
        for _ in 0..IN_A_ROW {
            task.state.swap(POLLED, Ordering::AcqRel);
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(waker)) {
                return Poll::Ready(output);
            }
            let woken = task
                .state
                .compare_exchange(POLLED, IDLE, Ordering::AcqRel, Ordering::Acquire)
                .is_err();
            if !woken {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use super::*;

    /// Counts how often the outer task is woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Is ready after it was polled so often, and wakes itself each time.
    fn after(polls: usize) -> impl Future<Output = usize> {
        let mut polled = 0;
        std::future::poll_fn(move |cx| {
            polled += 1;
            if polled > polls {
                return Poll::Ready(polled);
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    }

    fn poll<F: Future>(again: &mut Again<F>, cx: &mut Context<'_>) -> Poll<F::Output> {
        Pin::new(again).poll(cx)
    }

    #[test]
    fn one_that_wakes_itself_is_polled_at_once_but_not_without_end() {
        let woken = Arc::new(Woken::default());
        let waker = woken.clone().into();
        let mut cx = Context::from_waker(&waker);
        assert_eq!(poll(&mut Again::new(after(3)), &mut cx), Poll::Ready(4));
        assert_eq!(woken.0.load(Ordering::SeqCst), 0);
        let mut long = Again::new(after(IN_A_ROW));
        assert_eq!(poll(&mut long, &mut cx), Poll::Pending);
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        assert_eq!(poll(&mut long, &mut cx), Poll::Ready(IN_A_ROW + 1));
    }

    #[test]
    fn one_that_is_woken_later_wakes_its_task_once() {
        let woken = Arc::new(Woken::default());
        let waker = woken.clone().into();
        let mut inner = None;
        let mut again = Again::new(std::future::poll_fn(|cx| {
            inner = Some(cx.waker().clone());
            Poll::<()>::Pending
        }));
        assert!(poll(&mut again, &mut Context::from_waker(&waker)).is_pending());
        drop(again);
        let inner = inner.unwrap();
        inner.wake_by_ref();
        inner.wake();
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_up_from_another_thread_is_lost() {
        let (to, mut from) = tokio::sync::mpsc::channel(1);
        let sender = tokio::spawn(async move {
            for number in 0..20_000 {
                to.send(number).await.unwrap();
            }
        });
        let received = Again::new(async move {
            let mut count = 0;
            while from.recv().await.is_some() {
                count += 1;
            }
            count
        });
        let received = tokio::time::timeout(Duration::from_secs(60), tokio::spawn(received));
        assert_eq!(received.await.unwrap().unwrap(), 20_000);
        sender.await.unwrap();
    }
}
