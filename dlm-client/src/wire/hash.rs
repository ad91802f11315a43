//! The hash of resource names, and the node it makes the directory of a name.
//!
//! Jenkins' lookup3 in the form the kernel calls `jhash` (initial value 0, little-endian words).

use crate::{NodeId, ResName};

/// One input to [`directory_nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weighted {
    /// The member.
    pub node: NodeId,
    /// How often it stands in the table; when all are 0, all count as 1.
    pub weight: u32,
}

/// The hash of a resource's name.
#[must_use]
pub fn name_hash(name: &ResName) -> u32 {
    jhash(name.as_bytes(), 0)
}

/// The table of directory nodes: members in ascending order, each as often as its weight.
///
/// The sum of the weights is bounded by what a configuration can say for 128 nodes; the table is as long.
#[must_use]
pub fn directory_nodes(members: &[Weighted]) -> Vec<NodeId> {
    let mut sorted = members.to_vec();
    sorted.sort_by_key(|m| m.node);
    let even = sorted.iter().all(|m| m.weight == 0);
    sorted
        .iter()
        .flat_map(|m| {
            let times = if even { 1 } else { m.weight };
            std::iter::repeat_n(m.node, usize::try_from(times).unwrap_or(usize::MAX))
        })
        .collect()
}

/// The directory node of a hash; `None` only for an empty table.
#[must_use]
pub fn directory_node(table: &[NodeId], hash: u32) -> Option<NodeId> {
    let index = usize::try_from(hash >> 16).ok()?.checked_rem(table.len())?;
    table.get(index).copied()
}

const GOLDEN: u32 = 0xdead_beef;

/// Jenkins' hash of `bytes`.
#[must_use]
pub fn jhash(bytes: &[u8], initval: u32) -> u32 {
    // Lengths beyond 2^32 wrap, as a u32 length does.
    let low = bytes.len() & 0xffff_ffff;
    let start = GOLDEN
        .wrapping_add(u32::try_from(low).unwrap_or(0))
        .wrapping_add(initval);
    let (mut a, mut b, mut c) = (start, start, start);
    let mut rest = bytes;
    while rest.len() > 12 {
        let (block, after) = rest.split_at_checked(12).unwrap_or((rest, &[]));
        let [x, y, z] = words(block);
        (a, b, c) = mix(a.wrapping_add(x), b.wrapping_add(y), c.wrapping_add(z));
        rest = after;
    }
    if rest.is_empty() {
        return c;
    }
    let [x, y, z] = words(rest);
    last(a.wrapping_add(x), b.wrapping_add(y), c.wrapping_add(z))
}

/// Up to twelve bytes as three little-endian words, zero-filled.
fn words(bytes: &[u8]) -> [u32; 3] {
    let mut words = [0u32; 3];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks(4)) {
        let mut four = [0u8; 4];
        for (to, from) in four.iter_mut().zip(chunk) {
            *to = *from;
        }
        *word = u32::from_le_bytes(four);
    }
    words
}

/// lookup3: reversible mixing of three words.
const fn mix(mut a: u32, mut b: u32, mut c: u32) -> (u32, u32, u32) {
    a = a.wrapping_sub(c) ^ c.rotate_left(4);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(6);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(8);
    b = b.wrapping_add(a);
    a = a.wrapping_sub(c) ^ c.rotate_left(16);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(19);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(4);
    b = b.wrapping_add(a);
    (a, b, c)
}

/// lookup3: final mixing; its third word is the hash.
const fn last(mut a: u32, mut b: u32, mut c: u32) -> u32 {
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    (c ^ b).wrapping_sub(b.rotate_left(24))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(kind: u32, number: u64) -> ResName {
        ResName::new(format!("{kind:8x}{number:16x}").as_bytes()).unwrap()
    }

    /// Goal: the kernel's jhash. Method: vectors computed with the kernel's header.
    #[test]
    fn the_hash_is_the_kernels() {
        assert_eq!(jhash(b"a", 0), 0x58d6_8708);
        assert_eq!(jhash(b"hello world!", 0), 0x4b89_46db);
        assert_eq!(jhash(b"hello world!!", 0), 0xbdfd_2524);
    }

    /// Goal: the directory node of GFS2's names among 2, 3 and 4 equal members.
    #[test]
    fn the_directory_of_a_name_is_the_kernels() {
        let vectors = [
            (1, 4, 0x6ded_6295, [1, 1, 1]),
            (1, 5, 0x3733_a7f2, [1, 1, 3]),
            (1, 1, 0x08d2_42bc, [0, 2, 2]),
            (2, 0x16, 0x2ce2_3c44, [0, 0, 2]),
            (3, 0x11, 0x4d42_7289, [0, 2, 2]),
            (9, 0, 0x2c4f_91fb, [1, 0, 3]),
            (5, 0x805c, 0xfff1_90ef, [1, 1, 1]),
        ];
        for (kind, number, hash, indices) in vectors {
            assert_eq!(name_hash(&resource(kind, number)), hash, "{kind}/{number:x}");
            for (count, index) in (2u32..).zip(indices) {
                let members: Vec<_> = (1..=count)
                    .rev()
                    .map(|n| Weighted {
                        node: NodeId(n),
                        weight: 1,
                    })
                    .collect();
                let table = directory_nodes(&members);
                assert_eq!(directory_node(&table, hash), Some(NodeId(index + 1)));
            }
        }
    }

    #[test]
    fn weights_repeat_a_node_and_all_zero_means_all_one() {
        let members = |weights: [u32; 3]| {
            let all: Vec<_> = (5..)
                .zip(weights)
                .map(|(n, weight)| Weighted {
                    node: NodeId(n),
                    weight,
                })
                .collect();
            directory_nodes(&all).iter().map(|n| n.0).collect::<Vec<_>>()
        };
        assert_eq!(members([0, 0, 0]), [5, 6, 7]);
        assert_eq!(members([2, 0, 1]), [5, 5, 7]);
        assert_eq!(directory_node(&[], 7), None);
    }
}
