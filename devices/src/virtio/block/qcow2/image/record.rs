//! What a test sees of the writes.

use super::super::tests::power::{Event, Record};
use super::*;

impl ImageFile {
    pub(in super::super) fn start_recording(&self) -> Record {
        let record = Record::default();
        *locked(&self.0.record) = Some(Arc::clone(&record));
        record
    }

    fn note(&self, event: impl FnOnce() -> Event) {
        if let Some(record) = locked(&self.0.record).as_ref() {
            locked(record).push(event());
        }
    }

    pub(super) fn record(&self, bytes: &[u8], offset: u64) {
        self.note(|| Event::Write {
            offset,
            bytes: bytes.to_vec(),
        });
    }

    pub(super) fn record_zeros(&self, offset: u64, len: u64) {
        self.note(|| Event::Write {
            offset,
            bytes: vec![0; len as usize],
        });
    }

    pub(super) fn record_pieces(&self, pieces: Pieces<'_>, skip: u64, count: usize, offset: u64) {
        self.note(|| {
            let mut bytes = Vec::new();
            for slice in pieces.slices() {
                let mut part = vec![0; slice.len()];
                slice.copy_to(&mut part[..]);
                bytes.extend(part);
            }
            let bytes = bytes[skip as usize..][..count].to_vec();
            Event::Write { offset, bytes }
        });
    }

    pub(super) fn record_sync(&self) {
        self.note(|| Event::Sync);
    }
}
