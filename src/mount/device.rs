//! The device of a mount: a thread that answers requests and is about to wait for it lets another one take over.

use crate::sleep::{about_to_sleep, reading};
use gfs2_format::Result;
use gfs2_format::device::{BlockDevice, Identity, ReadRequest, Topology, WriteRequest};

/// A device that says so before it keeps a thread waiting ([`crate::sleep`]).
#[derive(Debug)]
pub struct MountDevice<D>(
    /// The device itself.
    pub D,
);

impl<D: BlockDevice> BlockDevice for MountDevice<D> {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn sector_size(&self) -> u32 {
        self.0.sector_size()
    }

    fn topology(&self) -> Topology {
        self.0.topology()
    }

    fn identity(&self) -> Option<Identity> {
        self.0.identity()
    }

    fn is_read_only(&self) -> bool {
        self.0.is_read_only()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        reading(|| self.0.read_at(offset, buf))
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        about_to_sleep();
        self.0.write_at(offset, buf)
    }

    fn write_fua(&self, offset: u64, buf: &[u8]) -> Result<()> {
        about_to_sleep();
        self.0.write_fua(offset, buf)
    }

    fn flush(&self) -> Result<()> {
        about_to_sleep();
        self.0.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<bool> {
        about_to_sleep();
        self.0.discard(offset, len)
    }

    fn read_batch(&self, requests: &mut [ReadRequest<'_>]) -> Result<()> {
        reading(|| self.0.read_batch(requests))
    }

    fn write_batch(&self, requests: &[WriteRequest<'_>]) -> Result<()> {
        about_to_sleep();
        self.0.write_batch(requests)
    }
}
