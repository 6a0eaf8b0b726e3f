//! The writer: protocol 2, the shapes of objects that `torch.save` produces.

use super::super::tensor::ElementType;

/// A storage that a written tensor refers to: entry `data/<key>` of the archive.
#[derive(Debug, Clone)]
pub struct Storage {
    /// Name of the entry.
    pub key: String,
    /// Element type.
    pub element: ElementType,
    /// Number of elements.
    pub count: usize,
}

/// Writes one object after the other.
#[derive(Debug)]
pub struct PickleWriter {
    bytes: Vec<u8>,
}

impl Default for PickleWriter {
    fn default() -> Self {
        Self { bytes: vec![0x80, 2] }
    }
}

impl PickleWriter {
    /// The finished pickle.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.push(b'.');
        self.bytes
    }

    /// A string.
    pub fn str(&mut self, text: &str) {
        self.bytes.push(b'X');
        self.bytes.extend((text.len() as u32).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    /// An integer.
    pub fn int(&mut self, value: i64) {
        match i32::try_from(value) {
            Ok(value) => {
                self.bytes.push(b'J');
                self.bytes.extend(value.to_le_bytes());
            }
            Err(_) => {
                self.bytes.extend([0x8a, 8]);
                self.bytes.extend(value.to_le_bytes());
            }
        }
    }

    /// A float.
    pub fn float(&mut self, value: f64) {
        self.bytes.push(b'G');
        self.bytes.extend(value.to_be_bytes());
    }

    /// A truth value.
    pub fn bool(&mut self, value: bool) {
        self.bytes.push(if value { 0x88 } else { 0x89 });
    }

    /// `None`.
    pub fn none(&mut self) {
        self.bytes.push(b'N');
    }

    /// A dict; `fill` writes its keys and values in turn.
    pub fn dict(&mut self, fill: impl FnOnce(&mut Self)) {
        self.bytes.extend(b"}(");
        fill(self);
        self.bytes.push(b'u');
    }

    /// A list; `fill` writes its items.
    pub fn list(&mut self, fill: impl FnOnce(&mut Self)) {
        self.bytes.extend(b"](");
        fill(self);
        self.bytes.push(b'e');
    }

    /// A tuple; `fill` writes its items.
    pub fn tuple(&mut self, fill: impl FnOnce(&mut Self)) {
        self.bytes.push(b'(');
        fill(self);
        self.bytes.push(b't');
    }

    /// A contiguous tensor over a whole storage.
    pub fn tensor(&mut self, shape: &[usize], storage: &Storage) {
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.tuple(|writer| {
            writer.tuple(|writer| {
                writer.str("storage");
                writer.global("torch", storage_name(storage.element));
                writer.str(&storage.key);
                writer.str("cpu");
                writer.int(storage.count as i64);
            });
            writer.bytes.push(b'Q');
            writer.int(0);
            writer.tuple(|writer| shape.iter().for_each(|size| writer.int(*size as i64)));
            let stride = |axis: usize| shape[axis + 1..].iter().product::<usize>() as i64;
            writer.tuple(|writer| (0..shape.len()).for_each(|axis| writer.int(stride(axis))));
            writer.bool(false);
            writer.global("collections", "OrderedDict");
            writer.bytes.extend(b")R");
        });
        self.bytes.push(b'R');
    }

    fn global(&mut self, module: &str, name: &str) {
        self.bytes.push(b'c');
        self.bytes.extend(module.as_bytes());
        self.bytes.push(b'\n');
        self.bytes.extend(name.as_bytes());
        self.bytes.push(b'\n');
    }
}

fn storage_name(element: ElementType) -> &'static str {
    match element {
        ElementType::F64 => "DoubleStorage",
        ElementType::F32 => "FloatStorage",
        ElementType::F16 => "HalfStorage",
        ElementType::Bf16 => "BFloat16Storage",
        ElementType::I64 => "LongStorage",
        ElementType::I32 => "IntStorage",
        ElementType::I16 => "ShortStorage",
        ElementType::I8 => "CharStorage",
        ElementType::U8 => "ByteStorage",
        ElementType::Bool => "BoolStorage",
    }
}
