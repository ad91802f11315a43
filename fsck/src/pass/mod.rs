//! The passes, by subject: each looks at one thing and reports what is wrong with it.

pub(crate) mod accounts;
pub(crate) mod area;
pub(crate) mod connectivity;
pub(crate) mod directories;
pub(crate) mod extent;
pub(crate) mod gaps;
pub(crate) mod inodes;
pub(crate) mod journals;
pub(crate) mod leaves;
pub(crate) mod naming;
pub(crate) mod remains;
pub(crate) mod rgrps;
pub(crate) mod shape;
pub(crate) mod system;
pub(crate) mod tree;
pub(crate) mod xattrs;
