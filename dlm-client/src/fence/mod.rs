//! Fencing: which agent stops which node, as `/etc/dlm/dlm.conf` says, and running the agents.

pub mod agent;
pub mod conf;
