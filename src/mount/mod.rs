//! Mounting: options, the helper's command line, who holds the device, start and stop in order.

pub mod background;
pub mod cli;
pub mod control;
pub mod device;
pub mod guard;
mod heap;
pub mod logging;
pub mod memory;
pub mod options;
pub(crate) mod rehearse;
pub mod remount;
pub mod run;
pub mod signals;
pub mod start;
pub mod timers;
pub mod unmount;
mod utab;
