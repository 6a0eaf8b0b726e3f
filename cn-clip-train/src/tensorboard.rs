//! TensorBoard event files with scalars.
//!
//! A file is a row of records: length, masked CRC-32C of it, an `Event` protocol buffer, masked
//! CRC-32C of that (TensorFlow's `tfrecord` format and `event.proto`).

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::TrainError;

/// An event file of its own name, so that a run that is continued adds one.
pub struct EventFile {
    path: PathBuf,
    file: File,
}

/// Field numbers of `event.proto` and `summary.proto`, with their wire types.
mod field {
    pub const EVENT_WALL_TIME: u8 = 1 << 3 | 1;
    pub const EVENT_STEP: u8 = 2 << 3;
    pub const EVENT_FILE_VERSION: u8 = 3 << 3 | 2;
    pub const EVENT_SUMMARY: u8 = 5 << 3 | 2;
    pub const SUMMARY_VALUE: u8 = 1 << 3 | 2;
    pub const VALUE_TAG: u8 = 1 << 3 | 2;
    pub const VALUE_SIMPLE: u8 = 2 << 3 | 5;
}

impl EventFile {
    /// Creates a file in a directory.
    pub fn create(directory: &Path) -> Result<Self, TrainError> {
        let name = format!("events.out.tfevents.{}.{}", seconds() as u64, process::id());
        let path = directory.join(name);
        let file = File::options().create(true).append(true).open(&path);
        let mut events = Self { file: file.map_err(TrainError::io(&path))?, path };
        let mut event = wall_time();
        bytes(&mut event, field::EVENT_FILE_VERSION, b"brain.Event:2");
        events.record(&event)?;
        Ok(events)
    }

    /// Writes numbers under `<group>/<name>`.
    pub fn scalars(
        &mut self,
        group: &str,
        step: u64,
        numbers: &[(&str, f64)],
    ) -> Result<(), TrainError> {
        let mut summary = Vec::new();
        for (name, number) in numbers {
            let mut value = Vec::new();
            bytes(&mut value, field::VALUE_TAG, format!("{group}/{name}").as_bytes());
            value.push(field::VALUE_SIMPLE);
            value.extend((*number as f32).to_le_bytes());
            bytes(&mut summary, field::SUMMARY_VALUE, &value);
        }
        let mut event = wall_time();
        event.push(field::EVENT_STEP);
        varint(&mut event, step);
        bytes(&mut event, field::EVENT_SUMMARY, &summary);
        self.record(&event)
    }

    fn record(&mut self, event: &[u8]) -> Result<(), TrainError> {
        let length = (event.len() as u64).to_le_bytes();
        let parts = [&length[..], &masked_crc(&length), event, &masked_crc(event)];
        self.file.write_all(&parts.concat()).map_err(TrainError::io(&self.path))
    }
}

fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn wall_time() -> Vec<u8> {
    let mut event = vec![field::EVENT_WALL_TIME];
    event.extend(seconds().to_le_bytes());
    event
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn bytes(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
    out.push(tag);
    varint(out, content.len() as u64);
    out.extend(content);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_masked_checksums_of_the_format() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = EventFile::create(directory.path()).unwrap();
        file.scalars("train", 300, &[("loss", 1.5), ("lr", 0.25)]).unwrap();
        let written = std::fs::read(&file.path).unwrap();
        let mut rest = &written[..];
        let mut events = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked_crc(&rest[..8]));
            let event = &rest[12..12 + length];
            assert_eq!(rest[12 + length..16 + length], masked_crc(event));
            events.push(event.to_vec());
            rest = &rest[16 + length..];
        }
        assert_eq!(events.len(), 2);
        assert!(events[0].ends_with(b"brain.Event:2"));
        // Step 300 as a varint, then two values of a summary.
        let summary = [
            &[0x10, 0xac, 0x02, 0x2a, 36, 0x0a, 17, 0x0a, 10][..],
            b"train/loss",
            &[0x15],
            &1.5f32.to_le_bytes(),
            &[0x0a, 15, 0x0a, 8],
            b"train/lr",
            &[0x15],
            &0.25f32.to_le_bytes(),
        ]
        .concat();
        assert_eq!(events[1][9..], summary);
        // The mask of the format's own documentation: of the checksum of the empty record.
        assert_eq!(masked_crc(b""), 0xa282_ead8u32.to_le_bytes());
    }
}
