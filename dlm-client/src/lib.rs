//! A lock service that has never heard of GFS2: the DLM model as a trait, with backends.
