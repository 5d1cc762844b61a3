//! Columns of numbers as the bytes of a safetensors file: what a browser reads without parsing, and Python too.

use serde_json::{Map, Value, json};

/// The numbers of a column.
pub(super) enum Values<'a> {
    I32(&'a [i32]),
    U32(&'a [u32]),
    F32(&'a [f32]),
    U8(&'a [u8]),
}

impl Values<'_> {
    fn dtype(&self) -> &'static str {
        match self {
            Values::I32(_) => "I32",
            Values::U32(_) => "U32",
            Values::F32(_) => "F32",
            Values::U8(_) => "U8",
        }
    }

    fn len(&self) -> usize {
        match self {
            Values::I32(values) => values.len(),
            Values::U32(values) => values.len(),
            Values::F32(values) => values.len(),
            Values::U8(values) => values.len(),
        }
    }

    fn size_bytes(&self) -> usize {
        self.len() * if matches!(self, Values::U8(_)) { 1 } else { 4 }
    }

    fn write(&self, bytes: &mut Vec<u8>) {
        match self {
            Values::I32(values) => values.iter().for_each(|value| bytes.extend(value.to_le_bytes())),
            Values::U32(values) => values.iter().for_each(|value| bytes.extend(value.to_le_bytes())),
            Values::F32(values) => values.iter().for_each(|value| bytes.extend(value.to_le_bytes())),
            Values::U8(values) => bytes.extend_from_slice(values),
        }
    }
}

/// The file. Columns of bytes come last, so that all others are aligned.
pub(super) fn safetensors(metadata: &[(&str, String)], columns: &[(&str, Values)]) -> Vec<u8> {
    let is_narrow = |column: &(&str, Values)| matches!(column.1, Values::U8(_));
    let ordered = || columns.iter().filter(|c| !is_narrow(c)).chain(columns.iter().filter(|c| is_narrow(c)));
    let mut header = Map::new();
    let metadata: Map<String, Value> = metadata.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    header.insert("__metadata__".to_owned(), Value::Object(metadata));
    let mut offset = 0;
    for (name, values) in ordered() {
        let end = offset + values.size_bytes();
        let info = json!({"dtype": values.dtype(), "shape": [values.len()], "data_offsets": [offset, end]});
        header.insert((*name).to_owned(), info);
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = Vec::with_capacity(8 + header.len() + offset);
    bytes.extend((header.len() as u64).to_le_bytes());
    bytes.extend(header);
    ordered().for_each(|(_, values)| values.write(&mut bytes));
    bytes
}

/// Texts as one column of bytes and one of where each begins, closed by the end.
pub(super) fn texts<'a>(all: impl Iterator<Item = &'a str>) -> (Vec<u32>, Vec<u8>) {
    let (mut starts, mut bytes) = (vec![0], Vec::new());
    for text in all {
        bytes.extend_from_slice(text.as_bytes());
        starts.push(bytes.len() as u32);
    }
    (starts, bytes)
}
