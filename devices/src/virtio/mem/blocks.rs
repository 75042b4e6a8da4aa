//! Which blocks are plugged.

use std::ops::Range;

use super::spec::BlockState;

const BITS: usize = u64::BITS as usize;

/// One bit per block of the region, set for a plugged one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    words: Vec<u64>,
    count: usize,
    plugged: usize,
}

impl Blocks {
    /// `count` unplugged blocks.
    pub(super) fn new(count: usize) -> Self {
        Self {
            words: vec![0; count.div_ceil(BITS)],
            count,
            plugged: 0,
        }
    }

    /// Number of plugged blocks.
    pub(super) fn plugged(&self) -> usize {
        self.plugged
    }

    /// The state of the blocks of `range`, which is not empty.
    pub(super) fn state(&self, range: &Range<usize>) -> BlockState {
        let set: usize = parts(range)
            .map(|(word, mask)| (self.words[word] & mask).count_ones() as usize)
            .sum();
        match set {
            0 => BlockState::Unplugged,
            set if set == range.len() => BlockState::Plugged,
            _ => BlockState::Mixed,
        }
    }

    /// Marks the blocks of `range` as plugged.
    pub(super) fn plug(&mut self, range: &Range<usize>) {
        for (word, mask) in parts(range) {
            let word = &mut self.words[word];
            self.plugged += (mask & !*word).count_ones() as usize;
            *word |= mask;
        }
    }

    /// Marks the blocks of `range` as unplugged.
    pub(super) fn unplug(&mut self, range: &Range<usize>) {
        for (word, mask) in parts(range) {
            let word = &mut self.words[word];
            self.plugged -= (mask & *word).count_ones() as usize;
            *word &= !mask;
        }
    }

    /// Marks all blocks as unplugged.
    pub(super) fn clear(&mut self) {
        self.words.fill(0);
        self.plugged = 0;
    }

    /// The plugged blocks as ranges of neighbours, in ascending order.
    pub(super) fn runs(&self) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for (at, word) in self.words.iter().enumerate() {
            let mut rest = *word;
            while rest != 0 {
                let first = rest.trailing_zeros();
                let len = (rest >> first).trailing_ones();
                let start = at * BITS + first as usize;
                let end = start + len as usize;
                match runs.last_mut() {
                    Some(last) if last.end == start => last.end = end,
                    _ => runs.push(start..end),
                }
                let done = first + len;
                rest = if done == u64::BITS {
                    0
                } else {
                    rest >> done << done
                };
            }
        }
        runs
    }

    /// The bits, lowest block in the lowest bit of the first byte; the last byte is filled up with zeros.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self
            .words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        bytes.truncate(self.count.div_ceil(8));
        bytes
    }

    /// What [`Blocks::to_bytes`] made of `count` blocks, if `bytes` can be that.
    pub(super) fn from_bytes(count: usize, bytes: &[u8]) -> Option<Self> {
        if bytes.len() != count.div_ceil(8) {
            return None;
        }
        let mut words = vec![0_u64; count.div_ceil(BITS)];
        for (at, byte) in bytes.iter().enumerate() {
            words[at / 8] |= u64::from(*byte) << (8 * (at % 8));
        }
        let plugged = words.iter().map(|word| word.count_ones() as usize).sum();
        let blocks = Self {
            words,
            count,
            plugged,
        };
        let within = blocks.runs().last().is_none_or(|last| last.end <= count);
        within.then_some(blocks)
    }
}

/// The words that `range` touches, each with a mask of its bits.
fn parts(range: &Range<usize>) -> impl Iterator<Item = (usize, u64)> {
    let Range { start, end } = *range;
    (start / BITS..end.div_ceil(BITS)).map(move |word| {
        let base = word * BITS;
        let first = start.saturating_sub(base);
        let last = (end - base).min(BITS);
        let mask = u64::MAX << first & u64::MAX >> (BITS - last);
        (word, mask)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const COUNT: usize = 200;

    proptest! {
        #[test]
        fn bits_are_a_set_of_blocks(changes in prop::collection::vec((0..COUNT, 1..COUNT, any::<bool>()), 0..12)) {
            let mut blocks = Blocks::new(COUNT);
            let mut model = BTreeSet::new();
            for (start, len, plug) in changes {
                let range = start..(start + len).min(COUNT);
                let set = range.clone().filter(|block| model.contains(block)).count();
                let state = match set {
                    0 => BlockState::Unplugged,
                    set if set == range.len() => BlockState::Plugged,
                    _ => BlockState::Mixed,
                };
                prop_assert_eq!(blocks.state(&range), state);
                if plug {
                    blocks.plug(&range);
                    model.extend(range);
                } else {
                    blocks.unplug(&range);
                    model.retain(|block| !range.contains(block));
                }
                prop_assert_eq!(blocks.plugged(), model.len());
            }
            let runs = blocks.runs();
            prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert_eq!(runs.into_iter().flatten().collect::<BTreeSet<_>>(), model);
            prop_assert_eq!(Blocks::from_bytes(COUNT, &blocks.to_bytes()), Some(blocks.clone()));
            blocks.clear();
            prop_assert_eq!(blocks, Blocks::new(COUNT));
        }
    }

    #[test]
    fn bytes_of_other_lengths_or_with_blocks_beyond_the_end_are_refused() {
        assert_eq!(Blocks::from_bytes(10, &[0xff]), None);
        assert_eq!(Blocks::from_bytes(10, &[0xff, 0, 0]), None);
        assert_eq!(Blocks::from_bytes(10, &[0xff, 4]), None);
        let blocks = Blocks::from_bytes(10, &[0xff, 3]).unwrap();
        assert_eq!(blocks.plugged(), 10);
        assert_eq!(blocks.state(&(0..10)), BlockState::Plugged);
    }
}
