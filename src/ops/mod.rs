//! The POSIX verbs, on types that know no transport.

pub mod types;
