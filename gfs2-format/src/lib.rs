//! The GFS2 on-disk format and the algorithms over its blocks.
