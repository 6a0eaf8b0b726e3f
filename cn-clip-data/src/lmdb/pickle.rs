//! The pickle of a pair: a tuple (image id, text id, text), as Python writes it.

use crate::record::{Id, Pair};

/// Encodes a pair as Python's pickle of protocol 4 does, byte for byte.
pub fn encode(pair: &Pair) -> Vec<u8> {
    let mut body = Vec::with_capacity(32 + pair.text.len());
    // Python stores each string object in its memo; ids that are the same text share one.
    let mut seen: Vec<&str> = Vec::new();
    for id in [&pair.image_id, &pair.text_id] {
        match id {
            Id::Int(value) => int(&mut body, *value),
            Id::Text(text) => string(&mut body, text, &mut seen),
        }
    }
    string(&mut body, &pair.text, &mut seen);
    body.extend([0x87, 0x94, b'.']);
    let mut out = vec![0x80, 4, 0x95];
    out.extend((body.len() as u64).to_le_bytes());
    out.extend(body);
    out
}

fn int(out: &mut Vec<u8>, value: i64) {
    if let Ok(value) = u8::try_from(value) {
        out.extend([b'K', value]);
    } else if let Ok(value) = u16::try_from(value) {
        out.push(b'M');
        out.extend(value.to_le_bytes());
    } else if let Ok(value) = i32::try_from(value) {
        out.push(b'J');
        out.extend(value.to_le_bytes());
    } else {
        // Two's complement in as few bytes as keep the sign.
        let bytes = value.to_le_bytes();
        let fits = |length: usize| {
            let shift = 64 - 8 * length as u32;
            value << shift >> shift == value
        };
        let length = (1..8).find(|length| fits(*length)).unwrap_or(8);
        out.extend([0x8a, length as u8]);
        out.extend(&bytes[..length]);
    }
}

fn string<'a>(out: &mut Vec<u8>, text: &'a str, seen: &mut Vec<&'a str>) {
    match u8::try_from(text.len()) {
        Ok(length) => out.extend([0x8c, length]),
        Err(_) => {
            out.push(b'X');
            out.extend((text.len() as u32).to_le_bytes());
        }
    }
    out.extend(text.as_bytes());
    out.push(0x94);
    seen.push(text);
}

/// Decodes the pickle of a pair, of any protocol; anything that is not a tuple of an id, an id and
/// a string is refused.
pub fn decode(bytes: &[u8]) -> Result<Pair, String> {
    let mut machine = Machine { bytes, at: 0, stack: Vec::new(), memo: Vec::new() };
    let parts = machine.run()?;
    let [image_id, text_id, Object::Str(text)] = parts.as_slice() else {
        return Err("is not a tuple of image id, text id and text".to_string());
    };
    let id = |object: &Object| match object {
        Object::Int(value) => Ok(Id::Int(*value)),
        Object::Str(text) => Ok(Id::Text(text.to_string())),
        _ => Err("has an id that is neither a number nor a string".to_string()),
    };
    Ok(Pair { image_id: id(image_id)?, text_id: id(text_id)?, text: text.to_string() })
}

#[derive(Debug)]
enum Object<'a> {
    Int(i64),
    Str(&'a str),
    Tuple(Vec<Object<'a>>),
    Mark,
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Object<'a>>,
    /// Strings; `None` for anything else, which is never recalled.
    memo: Vec<Option<&'a str>>,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Vec<Object<'a>>, String> {
        loop {
            let code = self.take(1)?[0];
            match code {
                b'.' => match self.stack.pop() {
                    Some(Object::Tuple(parts)) => return Ok(parts),
                    _ => return Err("is not a tuple".to_string()),
                },
                0x80 => drop(self.take(1)?),
                0x95 => drop(self.take(8)?),
                b'(' => self.stack.push(Object::Mark),
                b'K' => {
                    let value = self.take(1)?[0];
                    self.stack.push(Object::Int(value.into()));
                }
                b'M' => {
                    let value = self.number(2)?;
                    self.stack.push(Object::Int(value as i64));
                }
                b'J' => {
                    let value = self.number(4)? as u32 as i32;
                    self.stack.push(Object::Int(value.into()));
                }
                0x8a => {
                    let length = self.take(1)?[0].into();
                    let value = self.long(length)?;
                    self.stack.push(Object::Int(value));
                }
                b'I' | b'L' => {
                    let line = self.line()?;
                    let value = line.trim_end_matches('L').parse();
                    let value = value.map_err(|_| format!("has the number `{line}`"))?;
                    self.stack.push(Object::Int(value));
                }
                0x8c => self.string(1)?,
                b'X' => self.string(4)?,
                0x8d => self.string(8)?,
                b'q' => {
                    self.take(1)?;
                    self.remember();
                }
                b'r' => {
                    self.take(4)?;
                    self.remember();
                }
                b'p' => {
                    self.line()?;
                    self.remember();
                }
                0x94 => self.remember(),
                b'h' => {
                    let index = self.take(1)?[0].into();
                    self.recall(index)?;
                }
                b'j' => {
                    let index = self.number(4)? as usize;
                    self.recall(index)?;
                }
                0x85..=0x87 => {
                    let count = usize::from(code - 0x84);
                    let start = self.stack.len().checked_sub(count);
                    let parts = self.stack.split_off(start.ok_or("is damaged")?);
                    self.stack.push(Object::Tuple(parts));
                }
                b't' => {
                    let mark = |object: &Object| matches!(object, Object::Mark);
                    let start = self.stack.iter().rposition(mark).ok_or("is damaged")?;
                    let parts = self.stack.split_off(start + 1);
                    self.stack.pop();
                    self.stack.push(Object::Tuple(parts));
                }
                code => return Err(format!("has the instruction {code:#04x}, which is not data")),
            }
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..count).ok_or("ends early")?;
        self.at += count;
        Ok(taken)
    }

    fn number(&mut self, size: usize) -> Result<u64, String> {
        let bytes = self.take(size)?;
        Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn long(&mut self, length: usize) -> Result<i64, String> {
        let bytes = self.take(length)?;
        if length > 8 {
            return Err("has an id of more than 64 bits".to_string());
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut value = [if negative { 0xff } else { 0 }; 8];
        value[..length].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(value))
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or("ends early")?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| "is not UTF-8".to_string())
    }

    fn string(&mut self, size: usize) -> Result<(), String> {
        let length = usize::try_from(self.number(size)?).map_err(|_| "ends early")?;
        let bytes = self.take(length)?;
        let text = std::str::from_utf8(bytes).map_err(|_| "has text that is not UTF-8")?;
        self.stack.push(Object::Str(text));
        Ok(())
    }

    fn remember(&mut self) {
        self.memo.push(match self.stack.last() {
            Some(Object::Str(text)) => Some(text),
            _ => None,
        });
    }

    fn recall(&mut self, index: usize) -> Result<(), String> {
        let text = self.memo.get(index).copied().flatten().ok_or("is damaged")?;
        self.stack.push(Object::Str(text));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    fn pair(image_id: impl Into<Id>, text_id: impl Into<Id>, text: &str) -> Pair {
        Pair { image_id: image_id.into(), text_id: text_id.into(), text: text.to_string() }
    }

    #[test]
    fn recorded_pickles_are_reproduced_byte_for_byte() {
        let path =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/dataset/lmdb_contents.json");
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut checked = 0;
        for split in json.as_object().unwrap().values() {
            for entry in split["pairs"].as_array().unwrap() {
                let Some(hex) = entry.get(2) else { continue };
                let parts: (Id, Id, String) = serde_json::from_value(entry[1].clone()).unwrap();
                let expected: Vec<u8> = hex
                    .as_str()
                    .unwrap()
                    .as_bytes()
                    .chunks(2)
                    .map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap())
                    .collect();
                let pair = Pair { image_id: parts.0, text_id: parts.1, text: parts.2 };
                assert_eq!(encode(&pair), expected);
                assert_eq!(decode(&expected).unwrap(), pair);
                checked += 1;
            }
        }
        assert!(checked > 15);
    }

    #[test]
    fn random_pairs_survive() {
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..2000 {
            let mut id = || match rng.random_range(0..4) {
                0 => Id::Text(rng.random_range(0..1000u32).to_string() + ".jpg"),
                _ => Id::Int(rng.random::<i64>() >> rng.random_range(0..64)),
            };
            let (image_id, text_id) = (id(), id());
            let length = rng.random_range(0..400);
            let text: String = (0..length).map(|_| rng.random::<char>()).collect();
            let pair = Pair { image_id, text_id, text };
            assert_eq!(decode(&encode(&pair)).unwrap(), pair);
        }
    }

    #[test]
    fn other_protocols_are_read() {
        // Protocol 0 and 2 of (12, 'a', '中'), as Python writes them.
        let two =
            b"\x80\x02K\x0cX\x01\x00\x00\x00aq\x00X\x03\x00\x00\x00\xe4\xb8\xadq\x01\x87q\x02.";
        assert_eq!(decode(two).unwrap(), pair(12, "a", "中"));
        let shared = b"\x80\x04\x8c\x01a\x94h\x00h\x00\x87\x94.";
        assert_eq!(decode(shared).unwrap(), pair("a", "a", "a"));
    }

    #[test]
    fn a_string_that_is_remembered_often_is_kept_once() {
        // A million copies of it would not fit into any memory.
        let text = "字".repeat(1 << 20);
        let mut bytes = vec![b'X'];
        bytes.extend((text.len() as u32).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes.extend(vec![0x94; 1 << 20]);
        bytes.extend(b"K\x01j\xff\xff\x0f\x00\x87.");
        assert_eq!(decode(&bytes).unwrap(), pair(text.as_str(), 1, &text));
    }

    #[test]
    fn damage_is_an_error() {
        let whole = encode(&pair(1, 1 << 40, "文字"));
        for end in 0..whole.len() {
            assert!(decode(&whole[..end]).is_err());
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x55;
            let _ = decode(&bytes);
        }
        let error = decode(b"cposix\nsystem\n.").unwrap_err();
        assert!(error.contains("not data"), "{error}");
    }
}
