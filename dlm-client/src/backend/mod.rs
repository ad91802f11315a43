//! Lock services behind the trait.

pub mod kernel;
pub mod local;
pub mod wire;
