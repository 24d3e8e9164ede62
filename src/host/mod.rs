//! The other side: what a host does for a machine, for development, tests and measurements.
//!
//! ```text
//! kernel, modules -> initramfs --+
//! image, pack ---> drives -------+-> hardware -> qemu | ... -> vm (boots, configures, halts)
//!                                                                       |
//! client --HTTP--> gateway --> link --vsock 52, msgpack--> the guest <--+
//!                              guest_api <--vsock 53, HTTP-- the guest
//! ```
//!
//! [`link`] and [`gateway`] need no machine: any Unix socket that speaks as the VMM does will do.

pub mod cloud_hypervisor;
pub mod firecracker;
pub mod gateway;
pub mod guest_api;
pub mod hardware;
pub mod initramfs;
pub mod kernel;
mod kvm;
pub mod link;
pub mod pack;
pub mod qemu;
pub mod tools;
mod tsc;
pub mod vm;
