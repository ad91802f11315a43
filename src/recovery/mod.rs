//! Journal recovery at mount.
