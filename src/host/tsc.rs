//! How fast this processor's time stamp counter runs, for kernels in emulated machines that have no other clock to
//! measure it with.

use std::time::{Duration, Instant};

/// 20 ms make the frequency good to some parts per million; the kernel asks for 500.
const MEASURE: Duration = Duration::from_millis(20);

/// In kHz. Takes [`MEASURE`].
pub fn kilohertz() -> u64 {
    let (began, first) = (Instant::now(), ticks());
    std::thread::sleep(MEASURE);
    let (elapsed, last) = (began.elapsed(), ticks());
    let ticks = u128::from(last.wrapping_sub(first));
    (ticks * 1_000_000 / elapsed.as_nanos().max(1)) as u64
}

fn ticks() -> u64 {
    // SAFETY: RDTSC is part of every x86-64 processor and reads a register; Linux lets user programs use it
    // (PR_SET_TSC of prctl(2) would have to forbid it to this very process).
    #[allow(unsafe_code)]
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
}
