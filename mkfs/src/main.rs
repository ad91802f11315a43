//! mkfs.gfs2.

fn main() {}
