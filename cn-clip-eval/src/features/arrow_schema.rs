//! The Arrow schema of a parquet file of features: parquet itself does not say that all lists have
//! one length, and readers based on Arrow take it from here.
//!
//! Numbers of slots and types are those of Arrow's `Message.fbs` and `Schema.fbs`.

use base64::{Engine, prelude::BASE64_STANDARD};
use flatbuffers::{FlatBufferBuilder, TableFinishedWIPOffset, VOffsetT, WIPOffset};

/// Key of the schema in the metadata of a parquet file.
pub(super) const KEY: &str = "ARROW:schema";

const VERSION_5: i16 = 4;
const HEADER_SCHEMA: u8 = 1;
const TYPE_INT: u8 = 2;
const TYPE_FLOAT: u8 = 3;
const TYPE_UTF8: u8 = 5;
const TYPE_FIXED_SIZE_LIST: u8 = 16;
const SINGLE: i16 = 1;

type Table = WIPOffset<TableFinishedWIPOffset>;

/// Schema of a column of ids, int64 or strings, and one of lists of `dim` floats, in base64.
pub(super) fn encode(id: &str, integers: bool, dim: i32) -> String {
    let mut builder = Builder(FlatBufferBuilder::new());
    let id = match integers {
        true => {
            let kind = builder.table(|table| {
                table.push_slot::<i32>(slot(0), 64, 0);
                table.push_slot(slot(1), true, false);
            });
            builder.field(id, TYPE_INT, kind, &[])
        }
        false => {
            let kind = builder.table(|_| ());
            builder.field(id, TYPE_UTF8, kind, &[])
        }
    };
    let float = builder.table(|table| table.push_slot(slot(0), SINGLE, 0));
    let element = builder.field("element", TYPE_FLOAT, float, &[]);
    let list = builder.table(|table| table.push_slot(slot(0), dim, 0));
    let feature = builder.field("feature", TYPE_FIXED_SIZE_LIST, list, &[element]);
    let fields = builder.0.create_vector(&[id, feature]);
    let schema = builder.table(|table| table.push_slot_always(slot(1), fields));
    let message = builder.table(|table| {
        table.push_slot(slot(0), VERSION_5, 0);
        table.push_slot(slot(1), HEADER_SCHEMA, 0);
        table.push_slot_always(slot(2), schema);
    });
    builder.0.finish_minimal(message);
    let mut message = builder.0.finished_data().to_vec();
    message.resize(message.len().next_multiple_of(8), 0);
    let mut bytes = vec![0xff; 4];
    bytes.extend((message.len() as u32).to_le_bytes());
    bytes.extend(message);
    BASE64_STANDARD.encode(bytes)
}

/// Place of a field in the table of offsets, by its number.
fn slot(number: VOffsetT) -> VOffsetT {
    4 + 2 * number
}

struct Builder<'a>(FlatBufferBuilder<'a>);

impl<'a> Builder<'a> {
    fn table(&mut self, fill: impl FnOnce(&mut FlatBufferBuilder<'a>)) -> Table {
        let start = self.0.start_table();
        fill(&mut self.0);
        self.0.end_table(start)
    }

    fn field(&mut self, name: &str, kind: u8, of: Table, children: &[Table]) -> Table {
        let name = self.0.create_string(name);
        let children = self.0.create_vector(children);
        self.table(|table| {
            table.push_slot_always(slot(0), name);
            table.push_slot(slot(2), kind, 0);
            table.push_slot_always(slot(3), of);
            table.push_slot_always(slot(5), children);
        })
    }
}
