//! The node: whatever needs a lock, a cache, a log or a kernel.
