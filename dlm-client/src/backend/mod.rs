//! Lock services behind the trait.

pub mod local;
pub mod wire;
