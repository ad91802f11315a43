//! Mounting: options, the helper's command line, who holds the device, start and stop in order.

pub mod guard;
pub mod options;
