//! The verbs over a volume in memory. Every test ends with the reference checker finding nothing.

mod amplify;
mod basic;
mod crash;
mod flags;
mod memory;
mod model;
mod ordered;
mod pages;
mod rig;
mod space;
mod threads;
