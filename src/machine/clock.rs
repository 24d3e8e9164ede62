//! The clock after a pause: a machine that was stopped, or copied into a snapshot and started again from it, wakes up
//! with the time at which it fell asleep.
//!
//! Of a resumed copy the kernel's VMGENID driver (Linux 5.18) tells in the kernel's log, when it has made its random
//! numbers others than the copy's; the event that it was to send beside (`NEW_VMGENID=1`) has been taken out of Linux
//! again. Of anything else nobody tells. So the machine's own clock is compared with its host's from time to time, and
//! when the two have moved apart since the last time, ours is put right. The host's is that of KVM (ptp_kvm) where
//! there is one, else the real-time clock (rtc(4)).
//!
//! What counts is how the difference changes: a host whose clock is wrong, or in local time, is no reason to follow it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use tokio::io::unix::AsyncFd;
use tokio::time::MissedTickBehavior;

/// How often the clocks are compared: one ioctl and three vDSO calls.
const PERIOD: Duration = Duration::from_secs(2);

/// A difference that has grown by less than this is rounding, or somebody who has set the clock right: a real-time
/// clock counts whole seconds.
const JUMP: f64 = 2.0;

/// The kernel's log, a record for each read (Documentation/ABI/testing/dev-kmsg).
const KERNEL_LOG: &str = "/dev/kmsg";

/// What the kernel says when this machine is a copy of the one before (`add_vmfork_randomness` of its `random.c`).
const NEW_GENERATION: &str = "random: crng reseeded due to virtual machine fork";

/// The longest that a record can be (`CONSOLE_EXT_LOG_MAX` of the kernel).
const RECORD: usize = 8192;

/// What has happened to the machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Resumed {
    /// By how much the clock had to be put forward, in seconds; 0 where it was right.
    pub behind: f64,
    /// Whether the kernel says that the machine is a copy, started from a snapshot.
    pub is_copy: bool,
}

/// Why the clock is not looked after.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    #[error("reading the host's clock failed: {0}")]
    Read(Errno),
    #[error("setting the clock failed: {0}")]
    Set(Errno),
}

/// Looks after the clock for as long as it is polled, and calls `resumed` after each pause. Where there is no clock to
/// compare with, only what the kernel tells of is noticed.
///
/// # Errors
/// Where a clock can't be read or set.
pub async fn look_after(resumed: impl Fn(Resumed)) -> Result<(), ClockError> {
    let generations = Generations::watch();
    let Some(host) = HostClock::find() else {
        tracing::debug!(
            "this machine has neither KVM's clock nor a real-time clock: its clock stays behind after a pause"
        );
        loop {
            next_generation(generations.as_ref()).await;
            resumed(Resumed {
                behind: 0.0,
                is_copy: true,
            });
        }
    };
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = host.ahead()?;
    loop {
        let is_copy = tokio::select! {
            _ = ticks.tick() => false,
            () = next_generation(generations.as_ref()) => true,
        };
        let behind = host.ahead()? - known;
        if behind.abs() >= JUMP {
            put_forward(behind).map_err(ClockError::Set)?;
            known = host.ahead()?;
            resumed(Resumed { behind, is_copy });
        } else if is_copy {
            resumed(Resumed { behind: 0.0, is_copy });
        }
    }
}

fn seconds(time: TimeSpec) -> f64 {
    time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9
}

fn put_forward(by: f64) -> Result<(), Errno> {
    let now = seconds(clock_gettime(ClockId::CLOCK_REALTIME)?) + by;
    let duration = Duration::try_from_secs_f64(now).map_err(|_| Errno::ERANGE)?;
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(duration))
}

/// The clock of whoever runs this machine.
#[derive(Debug)]
enum HostClock {
    /// By a hypercall, exact to microseconds.
    Kvm(File),
    /// The real-time clock of a PC, or what a VMM has in its place.
    Rtc(File),
}

nix::ioctl_read!(rtc_read_time, b'p', 0x09, RtcTime);

/// `struct rtc_time` of linux/rtc.h: a `struct tm`, in UTC.
#[repr(C)]
#[derive(Debug, Default)]
pub struct RtcTime {
    second: libc::c_int,
    minute: libc::c_int,
    hour: libc::c_int,
    day: libc::c_int,
    month: libc::c_int,
    year: libc::c_int,
    unused: [libc::c_int; 3],
}

impl HostClock {
    fn find() -> Option<Self> {
        let kvm = kvm_clock().and_then(|path| File::open(path).ok()).map(Self::Kvm);
        kvm.or_else(|| File::open("/dev/rtc0").ok().map(Self::Rtc))
    }

    /// By how many seconds the host's clock is ahead of ours.
    fn ahead(&self) -> Result<f64, ClockError> {
        let host = self.read().map_err(ClockError::Read)?;
        let ours = clock_gettime(ClockId::CLOCK_REALTIME).map_err(ClockError::Read)?;
        Ok(host - seconds(ours))
    }

    #[allow(unsafe_code, reason = "ioctl(2)")]
    fn read(&self) -> Result<f64, Errno> {
        match self {
            Self::Kvm(device) => {
                // FD_TO_CLOCKID of clock_gettime(2): a dynamic clock's number is made of its descriptor.
                let id = (!device.as_raw_fd() << 3) | 3;
                clock_gettime(ClockId::from_raw(id)).map(seconds)
            }
            Self::Rtc(device) => {
                let mut time = RtcTime::default();
                // SAFETY: the kernel writes a `struct rtc_time` to `time`, which is one and lives until then.
                unsafe { rtc_read_time(device.as_raw_fd(), &raw mut time) }?;
                Ok(time.seconds())
            }
        }
    }
}

fn kvm_clock() -> Option<PathBuf> {
    let clocks = fs::read_dir("/sys/class/ptp").ok()?.flatten();
    let is_kvm = |path: &Path| fs::read_to_string(path.join("clock_name")).is_ok_and(|name| name.contains("KVM"));
    let found = clocks.map(|clock| clock.path()).find(|path| is_kvm(path))?;
    Some(Path::new("/dev").join(found.file_name()?))
}

impl RtcTime {
    /// Seconds since 1970, by the days of the Gregorian calendar before it in a year that begins with March.
    fn seconds(&self) -> f64 {
        let (year, month, day) = (
            i64::from(self.year) + 1900,
            i64::from(self.month) + 1,
            i64::from(self.day),
        );
        let year = if month <= 2 { year - 1 } else { year };
        let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
        let days =
            365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - 719_468;
        let of_day = i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second);
        (days * 86_400 + of_day) as f64
    }
}

/// The kernel's log, from now on.
#[derive(Debug)]
struct Generations(AsyncFd<File>);

impl Generations {
    /// `None` where the kernel doesn't let us read: then only the comparison of clocks tells of a pause.
    fn watch() -> Option<Self> {
        let mut options = OpenOptions::new();
        let mut log = options
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(KERNEL_LOG)
            .ok()?;
        log.seek(SeekFrom::End(0)).ok()?;
        // SAFETY: `AsyncFd` owns the file, and nothing else knows its descriptor.
        #[allow(unsafe_code)]
        let watched = unsafe { AsyncFd::register(log) };
        watched.ok().map(Self)
    }
}

/// Waits for a new generation; for ever where there is nothing to wait for.
async fn next_generation(generations: Option<&Generations>) {
    let Some(Generations(log)) = generations else {
        return std::future::pending().await;
    };
    let mut record = [0; RECORD];
    loop {
        let Ok(mut ready) = log.readable().await else {
            return std::future::pending().await;
        };
        match ready.try_io(|log| log.get_ref().read(&mut record)) {
            Ok(Ok(length)) if is_new_generation(&record[..length]) => return,
            // EPIPE: records were overwritten before they were read. The one that counts is made up for by the next
            // comparison of clocks. Anything else that is wrong with the log won't get better.
            Ok(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => return std::future::pending().await,
            _ => {}
        }
    }
}

/// Whether the kernel itself says so: what programs write to its log has another facility (syslog(2)) than 0.
fn is_new_generation(record: &[u8]) -> bool {
    let text = String::from_utf8_lossy(record);
    let Some((head, message)) = text.split_once(';') else {
        return false;
    };
    let priority = head.split(',').next().and_then(|priority| priority.parse::<u32>().ok());
    priority.is_some_and(|priority| priority < 8) && message.lines().next() == Some(NEW_GENERATION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kernel_tells_of_a_new_generation() {
        let said = "5,312,4661018,-;random: crng reseeded due to virtual machine fork\n";
        assert!(is_new_generation(said.as_bytes()));
        assert!(!is_new_generation(said.replacen('5', "13", 1).as_bytes()));
        assert!(!is_new_generation(b"5,311,62591,-;random: crng init done\n"));
        assert!(!is_new_generation(b"nonsense"));
    }

    #[test]
    fn a_real_time_clocks_date_is_seconds_since_1970() {
        let at = |year, month, day, hour| RtcTime {
            year: year - 1900,
            month: month - 1,
            day,
            hour,
            ..RtcTime::default()
        };
        assert_eq!(at(1970, 1, 1, 0).seconds(), 0.0);
        // As `date -u -d DATE +%s` has them.
        assert_eq!(at(2000, 2, 29, 12).seconds(), 951_825_600.0);
        assert_eq!(at(2026, 11, 24, 1).seconds(), 1_795_482_000.0);
        assert_eq!(at(2100, 3, 1, 0).seconds(), 4_107_542_400.0);
    }
}
