//! The lock daemon's part of a cluster node: what `dlm_controld` does, so that no `dlm_controld` is needed.

pub mod codec;
