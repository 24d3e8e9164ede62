//! The host's end of a worker's socketpair: system calls, and what the event loop watches of it.
//!
//! It is watched for what can be read alone. A socket that is watched for room to write, too, wakes this process each
//! time that the worker takes a frame off it, which is once for every event and of use to nobody.
#![allow(
    unsafe_code,
    reason = "descriptors are registered, and room is filled that is not initialised before"
)]

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use bytes::BytesMut;
use nix::libc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A stream socket that doesn't block.
pub struct Socket(AsyncFd<UnixStream>);

impl Socket {
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self(watch(socket, Interest::READABLE)?))
    }

    /// Appends what can be read to `buffer`, as far as it has room; waits until there is something. Nothing means that
    /// the other side has closed.
    ///
    /// # Errors
    /// Those of recv(2).
    pub async fn read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        let room = buffer.capacity() - buffer.len();
        loop {
            let mut guard = self.0.readable().await?;
            if let Ok(read) = guard.try_io(|socket| receive(socket.get_ref(), buffer)) {
                // Less than there was room for: nothing is left, and what comes later is told anew (epoll(7), questions
                // and answers, 9), as is the end.
                if matches!(read, Ok(count) if count < room) {
                    guard.clear_ready();
                }
                return read;
            }
        }
    }

    /// Writes what the socket takes now.
    ///
    /// # Errors
    /// Those of send(2); `WouldBlock` where it takes nothing.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.get_ref().write(bytes)
    }

    /// Something that waits for room to write, for as long as it lives.
    ///
    /// # Errors
    /// Those of dup(2) and epoll_ctl(2).
    pub fn room(&self) -> io::Result<Room> {
        // One descriptor is watched for one thing.
        Ok(Room(watch(self.0.get_ref().try_clone()?, Interest::WRITABLE)?))
    }
}

/// Waits for room to write.
pub struct Room(AsyncFd<UnixStream>);

impl Room {
    /// Writes once `attempt` does not find the socket full any more.
    ///
    /// # Errors
    /// Those of `attempt`.
    pub async fn write<T>(&self, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            let mut guard = self.0.writable().await?;
            if let Ok(written) = guard.try_io(|_| attempt()) {
                return written;
            }
        }
    }
}

fn watch(socket: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    // SAFETY: a UnixStream owns its descriptor, the same one for as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(socket, interest) }?)
}

/// recv(2) into the room that `buffer` has. To hand out that room as a slice it would have to be zeroed for each read.
fn receive(socket: &UnixStream, buffer: &mut BytesMut) -> io::Result<usize> {
    let room = buffer.spare_capacity_mut();
    // SAFETY: the kernel writes at most as many bytes as `room` has, which outlives the call.
    let count = unsafe { libc::recv(socket.as_raw_fd(), room.as_mut_ptr().cast(), room.len(), 0) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: so many bytes have been written just now.
    unsafe { buffer.set_len(buffer.len() + count) };
    Ok(count)
}
