//! The thread that all programs are started on.
//!
//! The kernel sends PR_SET_PDEATHSIG's signal when the *thread* that forked ends, not the process (prctl(2)), and the
//! runtime's threads come and go: so programs are born on one that stays.

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc;

use tokio::sync::oneshot;

/// Work for that thread.
type Birth = Box<dyn FnOnce() + Send>;

/// Does `work` on that thread, inside the caller's runtime.
///
/// # Errors
/// The thread can't be started, or is gone.
pub(super) async fn on_lasting_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    let birth = Box::new(move || {
        let _runtime = runtime.enter();
        // If nobody waits any more, what was started is dropped, and thereby killed.
        let _ = done.send(work());
    });
    let gone = || io::Error::other("the thread that starts programs is gone");
    thread()?.send(birth).map_err(|_| gone())?;
    result.await.map_err(|_| gone())
}

fn thread() -> io::Result<&'static mpsc::Sender<Birth>> {
    static THREAD: OnceLock<mpsc::Sender<Birth>> = OnceLock::new();
    if let Some(thread) = THREAD.get() {
        return Ok(thread);
    }
    let (sender, births) = mpsc::channel::<Birth>();
    std::thread::Builder::new()
        .name("starts programs".to_owned())
        .spawn(move || births.into_iter().for_each(|birth| birth()))?;
    // Of two that come at the same time one wins; the other's thread ends, having done nothing.
    Ok(THREAD.get_or_init(|| sender))
}
