//! Changes to valid files.

use serde_json::{Value, json};

/// What a file consists of, as far as changes know.
#[derive(Clone, Copy, PartialEq)]
pub enum Form {
    /// Bytes with little-endian numbers between them.
    Binary,
    Text,
    Json,
    /// Eight bytes of a length, JSON of that length, bytes.
    Safetensors,
    /// JSON on each line.
    Lines,
    /// Requests between [`NEXT`], each a head and, after an empty line, JSON.
    Requests,
}

/// Between one message and the next, where an input has several.
pub const NEXT: &[u8] = b"\n----\n";

/// The parts of a text between marks.
pub fn parts<'a>(text: &'a [u8], mark: &[u8]) -> Vec<&'a [u8]> {
    let (mut found, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.windows(mark.len()).position(|window| window == mark) {
        found.push(&rest[..at]);
        rest = &rest[at + mark.len()..];
    }
    found.push(rest);
    found
}

/// A generator of numbers: the same seed, the same inputs.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 for none.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.next() % n as u64) as usize }
    }
}

const NUMBERS: [u64; 14] = [
    0,
    1,
    2,
    255,
    65_535,
    1 << 16,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    (1 << 63) - 1,
    1 << 63,
    u64::MAX - 7,
    u64::MAX,
];

const WORDS: [&str; 12] =
    ["-1", "0", "1e308", "-1e309", "18446744073709551616", "0.5", "null", "\"\"", "[]", "{}", "\u{202e}", "\\u0000"];

/// Changes an input, one to four times.
pub fn change(input: &mut Vec<u8>, form: Form, seeds: &[Vec<u8>], random: &mut Random) {
    for _ in 0..1 + random.below(4) {
        match form {
            Form::Json if random.below(3) > 0 => change_json(input, random),
            Form::Safetensors if random.below(3) > 0 => {
                let header_len = input.first_chunk::<8>().map_or(0, |len| u64::from_le_bytes(*len) as usize);
                if let Some(end) = header_len.checked_add(8).filter(|end| *end <= input.len()) {
                    let mut header = input[8..end].to_vec();
                    if random.below(4) > 0 {
                        change_json(&mut header, random);
                    } else {
                        change_bytes(&mut header, Form::Text, seeds, random);
                    }
                    let data = input.split_off(end);
                    *input = (header.len() as u64).to_le_bytes().to_vec();
                    input.extend(header);
                    input.extend(data);
                }
            }
            Form::Lines if random.below(3) > 0 => change_part(input, b"\n", random, change_json),
            Form::Requests if random.below(3) > 0 => change_part(input, NEXT, random, |request, random| {
                let body = request.windows(2).position(|window| window == b"\n\n").map(|at| at + 2);
                match body {
                    Some(body) if random.below(3) > 0 => {
                        let mut json = request.split_off(body);
                        change_json(&mut json, random);
                        request.extend(json);
                    }
                    _ => change_bytes(request, Form::Text, seeds, random),
                }
            }),
            _ => change_bytes(input, form, seeds, random),
        }
    }
}

/// Changes one of the parts between marks.
fn change_part(input: &mut Vec<u8>, mark: &[u8], random: &mut Random, change: impl FnOnce(&mut Vec<u8>, &mut Random)) {
    let mut all: Vec<Vec<u8>> = parts(input, mark).into_iter().map(<[u8]>::to_vec).collect();
    let at = random.below(all.len());
    change(&mut all[at], random);
    *input = all.join(mark);
}

fn change_bytes(input: &mut Vec<u8>, form: Form, seeds: &[Vec<u8>], random: &mut Random) {
    let len = input.len();
    let at = random.below(len);
    match random.below(8) {
        0 => input.truncate(at),
        1 if len > 0 => input[at] ^= 1 << random.below(8),
        2 if len > 0 => input[at] = random.next() as u8,
        3 if !matches!(form, Form::Binary | Form::Safetensors) => {
            let word = WORDS[random.below(WORDS.len())];
            // In place of a number where one begins hereabouts.
            let begin = input[at..].iter().position(u8::is_ascii_digit).map_or(at, |n| at + n);
            let end = input[begin..].iter().position(|b| !b.is_ascii_digit()).map_or(len, |n| begin + n);
            input.splice(begin..end, word.bytes());
        }
        3 | 4 => {
            let size = [1, 2, 4, 8][random.below(4)];
            // Lengths and counts are at the beginning, more often than not.
            let at = if random.below(2) == 0 { random.below(len.min(256)) } else { at };
            if at + size <= len {
                let number = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
                input[at..at + size].copy_from_slice(&number[..size]);
            }
        }
        5 => {
            let end = at + random.below((len - at).min(64));
            let copy = input[at..end].to_vec();
            let to = random.below(len);
            input.splice(to..to, copy);
        }
        6 => {
            let end = at + random.below((len - at).min(64));
            input.drain(at..end);
        }
        _ => {
            let other = &seeds[random.below(seeds.len())];
            let from = random.below(other.len());
            let end = from + random.below((other.len() - from).min(4096));
            let until = (at + end - from).min(len);
            input.splice(at..until, other[from..end].iter().copied());
        }
    }
}

/// Changes a value of a JSON text; texts that are none are left.
fn change_json(input: &mut Vec<u8>, random: &mut Random) {
    let Ok(mut root) = serde_json::from_slice::<Value>(input) else { return };
    let mut at = &mut root;
    // Down some way, more likely to where there is much.
    for _ in 0..1 + random.below(6) {
        let n = match &*at {
            Value::Array(list) => list.len(),
            Value::Object(map) => map.len(),
            _ => 0,
        };
        if n == 0 {
            break;
        }
        let index = random.below(n);
        at = match at {
            Value::Array(list) => &mut list[index],
            Value::Object(map) => map.values_mut().nth(index).expect("below its length"),
            _ => break,
        };
    }
    *at = match random.below(12) {
        0 => Value::Null,
        1 => json!(NUMBERS[random.below(NUMBERS.len())]),
        2 => json!(-(random.below(1000) as i64)),
        3 => json!(random.below(1000)),
        4 => json!([1e300, -0.0, 1e-300, 0.5, -1.5][random.below(5)]),
        5 => json!("\u{202e}\u{1b}[31m\u{0}"),
        6 => json!("x".repeat(random.below(2000))),
        7 => json!([at.take()]),
        8 => json!({ "type": at.take() }),
        9 => json!(random.below(2) == 0),
        10 => match at.take() {
            Value::Array(mut list) if !list.is_empty() => {
                let again = list[random.below(list.len())].clone();
                list.push(again);
                Value::Array(list)
            }
            Value::Object(mut map) if !map.is_empty() => {
                let key = map.keys().nth(random.below(map.len())).cloned().unwrap_or_default();
                map.remove(&key);
                Value::Object(map)
            }
            other => other,
        },
        _ => json!([]),
    };
    *input = serde_json::to_vec(&root).unwrap_or_default();
}
