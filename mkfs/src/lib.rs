//! mkfs.gfs2 as a library.
