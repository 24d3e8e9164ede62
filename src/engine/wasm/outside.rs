//! What a guest holds outside its memory, as far as it shows in its table of resources: headers, the writes of bodies that
//! wait, files, sockets. What it weighs is estimated from above.

use std::any::Any;

use http::HeaderMap;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p2::bindings::filesystem::types::DirectoryEntryStream;
use wasmtime_wasi::sockets::{TcpSocket, UdpSocket};
use wasmtime_wasi_http::p2::types::{HostIncomingResponse, HostOutgoingRequest, HostOutgoingResponse};
use wasmtime_wasi_http::{FieldMap, p3};

use super::limits::{Held, Limits};

/// A resource that holds little, in bytes.
const LITTLE: usize = 1 << 10;
/// Headers, if they are many: as much as they may take.
const HEADERS: usize = 128 << 10;
/// Headers that are looked at one by one.
const FEW: usize = 64;
/// What of a body waits for its reader, at most.
const BODY: usize = 256 << 10;
/// The buffers of a socket or of a request's connection, or the names of a folder.
const BUFFERS: usize = 64 << 10;

/// Counts what is in `table`, and `requests` that are under way; empties the table for good if it is too much: the guest's
/// next call for any of it fails.
pub(super) fn account(table: &mut ResourceTable, requests: usize, limits: &mut Limits) {
    let mut held = Held {
        bytes: requests * BUFFERS,
        files: requests,
    };
    for entry in table.iter_mut() {
        let (bytes, files) = weigh(entry);
        held.bytes += bytes;
        held.files += files;
    }
    if !limits.hold(held) {
        *table = ResourceTable::new();
        table.set_max_capacity(0);
    }
}

/// Bytes and open files.
fn weigh(entry: &dyn Any) -> (usize, usize) {
    if let Some(fields) = entry.downcast_ref::<FieldMap>() {
        (headers(fields), 0)
    } else if let Some(response) = entry.downcast_ref::<HostOutgoingResponse>() {
        (headers(&response.headers) + BODY, 0)
    } else if let Some(request) = entry.downcast_ref::<HostOutgoingRequest>() {
        let path = request.path_with_query.as_ref().map_or(0, String::len);
        (headers(&request.headers) + path + BODY, 0)
    } else if let Some(response) = entry.downcast_ref::<HostIncomingResponse>() {
        (headers(&response.headers), 0)
    } else if let Some(request) = entry.downcast_ref::<p3::Request>() {
        let path = request.path_with_query.as_ref().map_or(0, |path| path.as_str().len());
        (headers(&request.headers) + path, 0)
    } else if let Some(response) = entry.downcast_ref::<p3::Response>() {
        (headers(&response.headers), 0)
    } else if entry.is::<TcpSocket>() || entry.is::<UdpSocket>() {
        (BUFFERS, 1)
    } else if entry.is::<DirectoryEntryStream>() {
        (BUFFERS, 0)
    } else {
        (LITTLE, usize::from(entry.is::<Descriptor>()))
    }
}

fn headers(map: &HeaderMap) -> usize {
    if map.len() > FEW {
        return HEADERS;
    }
    let contents: usize = map.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    LITTLE + contents + map.len() * 128
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::wasm::limits::{Budget, Refused};

    #[test]
    fn headers_beyond_what_a_guest_may_hold_are_taken_away() {
        let budget = Box::leak(Box::new(Budget::of_machine(4 << 20, 1024)));
        let mut limits = Limits::new(budget, usize::MAX);
        let mut table = ResourceTable::new();
        for kept in [true, false] {
            for _ in 0..20 {
                let mut fields = FieldMap::new_mutable(HEADERS);
                let value = vec![b'x'; 100 << 10].try_into().unwrap();
                fields.append_raw(http::header::COOKIE, value).unwrap();
                table.push(fields).unwrap();
            }
            account(&mut table, 0, &mut limits);
            assert_eq!(table.is_empty(), !kept);
        }
        assert!(matches!(limits.refused(), Some(Refused::OutsideOne { .. })));
        assert!(table.push(()).is_err());
    }
}
