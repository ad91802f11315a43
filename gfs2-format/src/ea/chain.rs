//! The EA blocks of an inode: none, one, or a list.

use super::record::{Record, records};
use crate::addr::BlockAddr;
use crate::edit::{Block, BlockRead};
use crate::error::Result;
use crate::ondisk::{DinodeFlags, META_HEADER_SIZE, MetaHeader, MetaType};
use crate::tree::{dinode_of, ptrs};

/// Where the xattrs of an inode are.
#[derive(Clone, Debug)]
pub(super) struct EaBlocks {
    /// The list, with its bytes.
    pub(super) indirect: Option<(BlockAddr, Block)>,
    /// The EA blocks: of the list those before its first zero.
    pub(super) blocks: Vec<BlockAddr>,
}

impl EaBlocks {
    pub(super) fn open<R: BlockRead + ?Sized>(reader: &R, addr: BlockAddr) -> Result<Self> {
        let di = dinode_of(reader, addr)?;
        let geometry = reader.geometry();
        let mut found = Self {
            indirect: None,
            blocks: Vec::new(),
        };
        let Some(first) = geometry.check_pointer(di.eattr.get(), addr, "dinode", "di_eattr")? else {
            return Ok(found);
        };
        if !di.flags().contains(DinodeFlags::EA_INDIRECT) {
            found.blocks.push(first);
            return Ok(found);
        }
        let block = reader.read(first)?;
        MetaHeader::check(&block, first, MetaType::In)?;
        for raw in ptrs(&block, META_HEADER_SIZE, first)?
            .iter()
            .take_while(|p| p.get() != 0)
        {
            found
                .blocks
                .push(geometry.check_address(raw.get(), first, "indirect block", "pointer")?);
        }
        found.indirect = Some((first, block));
        Ok(found)
    }

    /// Shows every record of every block until `visit` answers.
    pub(super) fn each<R: BlockRead + ?Sized, T>(
        &self,
        reader: &R,
        most_type: u8,
        mut visit: impl FnMut(BlockAddr, &Record<'_>) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        for addr in &self.blocks {
            let block = reader.read(*addr)?;
            MetaHeader::check(&block, *addr, MetaType::Ea)?;
            for record in records(&block, *addr, most_type) {
                if let Some(answer) = visit(*addr, &record?)? {
                    return Ok(Some(answer));
                }
            }
        }
        Ok(None)
    }
}
