//! When something that has ended is started again: soon at first, and later each time that it does not live long. While the
//! next start is far off, events are refused at once rather than made to wait: the circuit is open.

use std::time::Duration;

/// What lived this long is sound: its end says nothing about the next one.
const SOUND: Duration = Duration::from_secs(10);

/// Events wait for a start that is no further away than this; otherwise they are refused.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// The pauses of one thing that is started again and again.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    shortest: Duration,
    longest: Duration,
    next: Duration,
}

/// That of programs.
impl Default for Backoff {
    fn default() -> Self {
        Self::between(Duration::from_millis(50), Duration::from_secs(10))
    }
}

impl Backoff {
    /// Begins with a pause of `shortest`; each further one is twice as long, up to `longest`.
    pub fn between(shortest: Duration, longest: Duration) -> Self {
        Self {
            shortest,
            longest,
            next: shortest,
        }
    }

    /// The pause after a life of `lived`, zero for what could not even be started.
    pub fn after(&mut self, lived: Duration) -> Duration {
        if lived >= SOUND {
            self.next = self.shortest;
        }
        let pause = self.next;
        self.next = (2 * pause).min(self.longest);
        pause
    }
}

/// `Retry-After` for an event that is refused `wait` before the next start: a moment later, when that has likely succeeded.
pub fn retry_after(wait: Duration) -> Duration {
    wait.max(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_until_something_lives() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> = (0..10).map(|_| backoff.after(Duration::ZERO).as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(backoff.after(SOUND).as_millis(), 50);
        assert_eq!(backoff.after(Duration::from_secs(1)).as_millis(), 100);
    }
}
