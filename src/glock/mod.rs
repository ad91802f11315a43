//! Glocks: what the layers above need to know of them to compile before the machine arrives.

mod name;

pub use name::{GlockName, GlockType};
