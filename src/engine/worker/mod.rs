//! Framed channel to a native worker process.
