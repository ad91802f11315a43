//! Blocks marked used that nothing uses.

use crate::check::{Check, Step};
use crate::observed::Code;
use crate::problem::{Kind, Problem};
use gfs2_format::Expected;
use gfs2_format::ondisk::BlockState;

/// Blocks listed at a time.
const BATCH: usize = 4096;

impl Check<'_> {
    /// Reports what is marked used and has no owner; neighbours in one finding.
    pub(crate) fn leaks(&mut self) -> Step {
        for group in 0..self.observed.groups().len() {
            let mut from = Some(0);
            while let Some(start) = from {
                let Some(found) = self.observed.groups().get(group) else {
                    break;
                };
                let data0 = found.layout.data0();
                let batch: Vec<u32> = found
                    .with_code(Code::Used, start)
                    .take(BATCH)
                    .map(|(index, _)| index)
                    .collect();
                from = batch.last().and_then(|index| index.checked_add(1));
                for block in batch
                    .into_iter()
                    .filter_map(|index| data0.checked_add(u64::from(index)))
                {
                    let expected = Expected::Value(BlockState::Free as u64);
                    self.found(Problem::new(
                        Kind::Leaked,
                        block,
                        "block state",
                        BlockState::Used as u64,
                        expected,
                    ));
                }
            }
        }
        Ok(())
    }
}
