//! fsck.gfs2 as a library.
