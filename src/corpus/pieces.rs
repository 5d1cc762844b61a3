//! Files of text, read piece by piece: plain text or JSON lines, compressed or not.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What is tokenised at once: long documents are cut into pieces of about this size, at the ends of lines.
const PIECE_BYTES: usize = 1 << 16;

/// A line of JSON longer than this is no document.
const MAX_LINE_BYTES: usize = 64 << 20;

/// Folders below a folder that are looked into; links could make a circle.
const MAX_DEPTH: usize = 8;

/// Ends of names of files that a folder of text is searched for, before the end that compression adds.
const TEXT_ENDS: [&str; 5] = [".txt", ".text", ".md", ".jsonl", ".ndjson"];
const COMPRESSED_ENDS: [&str; 3] = [".gz", ".xz", ".zst"];

/// What a document is in plain text. Each line of a `.jsonl` file is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// The whole file.
    #[default]
    File,
    /// What stands between empty lines.
    Paragraphs,
    /// Each line.
    Lines,
}

impl FromStr for Split {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "file" => Ok(Split::File),
            "paragraphs" => Ok(Split::Paragraphs),
            "lines" => Ok(Split::Lines),
            _ => Err(Error::Spec { text: text.to_owned(), expected: "file, paragraphs or lines" }),
        }
    }
}

/// A text to read: a file, the standard input, or a text that is part of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A file.
    File(PathBuf),
    /// The standard input.
    Stdin,
    /// A text that is part of the program.
    Embedded(&'static str, &'static [u8]),
}

impl Input {
    /// The name without folders.
    pub(crate) fn name(&self) -> String {
        match self {
            Input::File(path) => {
                path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
            }
            Input::Stdin => "-".to_owned(),
            Input::Embedded(name, _) => (*name).to_owned(),
        }
    }

    /// Its size on disk; 0 where that cannot be told.
    pub(crate) fn size_bytes(&self) -> u64 {
        match self {
            Input::File(path) => std::fs::metadata(path).map_or(0, |metadata| metadata.len()),
            Input::Stdin => 0,
            Input::Embedded(_, text) => text.len() as u64,
        }
    }

    /// How messages name it.
    fn shown(&self) -> String {
        match self {
            Input::File(path) => path.display().to_string(),
            Input::Stdin => "the standard input".to_owned(),
            Input::Embedded(name, _) => format!("the text of `{name}`"),
        }
    }
}

/// The files that `paths` name: files as they are, of folders all text files below them in the order of their names,
/// `-` for the standard input.
///
/// # Errors
/// [`Error::Io`]; [`Error::Text`] for a folder without text, or where nothing is named.
pub fn inputs(paths: &[PathBuf]) -> Result<Vec<Input>> {
    let mut found = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            found.push(Input::Stdin);
        } else if path.is_dir() {
            let before = found.len();
            list(path, 0, &mut found)?;
            if found.len() == before {
                let problem = format!("the folder holds no file that ends in {}", TEXT_ENDS.join(", "));
                return Err(Error::Text { file: path.display().to_string(), problem });
            }
        } else {
            found.push(Input::File(path.clone()));
        }
    }
    match found.is_empty() {
        true => Err(Error::Text { file: String::new(), problem: "no file is named".into() }),
        false => Ok(found),
    }
}

fn list(folder: &Path, depth: usize, found: &mut Vec<Input>) -> Result<()> {
    let failed = |source| Error::Io { doing: "cannot list", path: folder.to_owned(), source };
    let entries = std::fs::read_dir(folder).map_err(failed)?.collect::<std::io::Result<Vec<_>>>().map_err(failed)?;
    let mut paths: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            if depth < MAX_DEPTH {
                list(&path, depth + 1, found)?;
            }
        } else if TEXT_ENDS.iter().any(|end| plain_name(&path).ends_with(end)) {
            found.push(Input::File(path));
        }
    }
    Ok(())
}

/// A file's name in lower case, without what compression adds.
fn plain_name(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let end = COMPRESSED_ENDS.iter().find_map(|end| name.strip_suffix(end)).map(str::to_owned);
    end.unwrap_or(name)
}

/// How files are read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextFormat {
    /// The field of a line of JSON that holds the text.
    pub field: String,
    /// What a document is in plain text.
    pub split: Split,
}

impl Default for TextFormat {
    fn default() -> Self {
        Self { field: "text".into(), split: Split::default() }
    }
}

/// A piece of a document, tokenised on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Of a line or more, or a part of one that is very long.
    pub text: String,
    /// Whether the document ends with it.
    pub ends_document: bool,
}

/// The pieces of one file, in order.
pub struct Pieces<'a> {
    reader: Box<dyn BufRead>,
    shown: String,
    format: &'a TextFormat,
    is_json: bool,
    /// Lines read so far.
    line: usize,
    /// What was read of the document and not given yet.
    rest: String,
    /// Whether `rest` is all that is left of its document.
    rest_ends: bool,
    at_end: bool,
}

impl<'a> Pieces<'a> {
    /// Opens a file; compression is told by its first bytes, JSON lines by the name, or where that says nothing by the first
    /// character.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Text`] for compression that this build cannot read.
    pub fn open(input: &Input, format: &'a TextFormat) -> Result<Self> {
        let shown = input.shown();
        let io = |doing| {
            let path = PathBuf::from(&shown);
            move |source| Error::Io { doing, path, source }
        };
        let file: Box<dyn Read> = match input {
            Input::File(path) => {
                let file = File::open(path).map_err(io("cannot open"))?;
                if file.metadata().map_err(io("cannot read"))?.is_dir() {
                    return Err(io("cannot read")(std::io::Error::other("a folder")));
                }
                Box::new(file)
            }
            Input::Stdin => Box::new(std::io::stdin()),
            Input::Embedded(_, text) => Box::new(*text),
        };
        let mut reader = plain(BufReader::with_capacity(1 << 18, file), &shown)?;
        // Where the name says nothing, the first character does.
        let is_named = |path: &Path| TEXT_ENDS.iter().any(|end| plain_name(path).ends_with(end));
        let is_json = match input {
            Input::File(path) if is_named(path) => {
                [".jsonl", ".ndjson"].iter().any(|end| plain_name(path).ends_with(end))
            }
            Input::Embedded(..) => false,
            Input::File(_) | Input::Stdin => {
                let start = reader.fill_buf().map_err(io("cannot read"))?;
                start.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{')
            }
        };
        let (rest, line) = (String::new(), 0);
        Ok(Self { reader, shown, format, is_json, line, rest, rest_ends: false, at_end: false })
    }

    /// The next piece; `None` at the end of the file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Text`] for what is no text, no JSON or has no such field.
    pub fn next_piece(&mut self) -> Result<Option<Piece>> {
        loop {
            if self.rest.len() >= 2 * PIECE_BYTES {
                let after = self.rest.split_off(cut(&self.rest));
                let text = std::mem::replace(&mut self.rest, after);
                return Ok(Some(Piece { text, ends_document: false }));
            }
            if self.rest_ends || self.at_end {
                self.rest_ends = false;
                let text = std::mem::take(&mut self.rest);
                if !text.trim().is_empty() {
                    return Ok(Some(Piece { text, ends_document: true }));
                }
                if self.at_end {
                    return Ok(None);
                }
            }
            self.read_more()?;
        }
    }

    fn read_more(&mut self) -> Result<()> {
        let Some(line) = self.read_line()? else {
            self.at_end = true;
            return Ok(());
        };
        let is_blank = line.trim().is_empty();
        if self.is_json {
            if !is_blank {
                self.rest = self.field_of(&line)?;
                self.rest_ends = true;
            }
            return Ok(());
        }
        match self.format.split {
            Split::File => self.rest.push_str(&line),
            Split::Lines => {
                self.rest = line.trim_end_matches(['\n', '\r']).to_owned();
                self.rest_ends = true;
            }
            Split::Paragraphs if is_blank => self.rest_ends = !self.rest.is_empty(),
            Split::Paragraphs => self.rest.push_str(&line),
        }
        if self.format.split == Split::Paragraphs && self.rest_ends {
            self.rest.truncate(self.rest.trim_end_matches(['\n', '\r']).len());
        }
        Ok(())
    }

    /// The text of a line of JSON.
    fn field_of(&self, line: &str) -> Result<String> {
        let json: serde_json::Value =
            serde_json::from_str(line).map_err(|e| self.problem(format!("line {} is not JSON: {e}", self.line)))?;
        let field = &self.format.field;
        if let Some(text) = json.get(field).and_then(serde_json::Value::as_str) {
            return Ok(text.to_owned());
        }
        let problem = match (json.get(field), json.as_object()) {
            (Some(_), _) => format!("`{field}` is no text in line {}", self.line),
            (None, Some(object)) => {
                let fields = object.keys().take(20).map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
                format!("line {} has no field `{field}`; it has {fields}", self.line)
            }
            (None, None) => format!("line {} is no JSON object", self.line),
        };
        Err(self.problem(problem))
    }

    fn problem(&self, problem: String) -> Error {
        Error::Text { file: self.shown.clone(), problem }
    }

    /// The next line with its end, or a part of a very long one; `None` at the end of the file.
    fn read_line(&mut self) -> Result<Option<String>> {
        let limit = if self.is_json { MAX_LINE_BYTES } else { PIECE_BYTES };
        let mut bytes = Vec::new();
        let failed = |source| Error::Io { doing: "cannot read", path: PathBuf::from(&self.shown), source };
        let n = (&mut self.reader).take(limit as u64).read_until(b'\n', &mut bytes).map_err(failed)?;
        if n == 0 {
            return Ok(None);
        }
        self.line += 1;
        if bytes.last() != Some(&b'\n') && n == limit {
            if self.is_json {
                return Err(self.problem(format!("line {} is longer than {} MB", self.line, MAX_LINE_BYTES >> 20)));
            }
            // The rest of a character that was cut.
            while std::str::from_utf8(&bytes).is_err_and(|e| e.error_len().is_none()) {
                let mut one = [0];
                match self.reader.read(&mut one).map_err(failed)? {
                    0 => break,
                    _ => bytes.push(one[0]),
                }
            }
        }
        if self.line == 1 && bytes.starts_with(b"\xef\xbb\xbf") {
            bytes.drain(..3);
        }
        if bytes.contains(&0) {
            return Err(self.problem(format!("line {} holds a zero byte: this is no text", self.line)));
        }
        match String::from_utf8(bytes) {
            Ok(line) => Ok(Some(line)),
            Err(e) => Err(self.problem(format!("line {} is not UTF-8: {}", self.line, e.utf8_error()))),
        }
    }
}

/// Where to cut a text that is at least two pieces long: before a line that begins with a letter, else before a space,
/// so that no token reaches over the cut.
fn cut(text: &str) -> usize {
    let bytes = text.as_bytes();
    let window = PIECE_BYTES..2 * PIECE_BYTES;
    let is_boundary = |&at: &usize| text.is_char_boundary(at);
    let before_line = |&at: &usize| bytes[at - 1] == b'\n' && !bytes[at].is_ascii_whitespace();
    let before_space = |&at: &usize| bytes[at] == b' ' && !bytes[at - 1].is_ascii_whitespace();
    let found = window.clone().filter(is_boundary).find(before_line);
    found
        .or_else(|| window.clone().find(before_space))
        .or_else(|| window.clone().find(is_boundary))
        .unwrap_or(text.len())
}

/// Opens a file, whether compressed or not.
///
/// # Errors
/// A file that cannot be read; a compressed one in a build without compression.
pub fn open_plain(path: &Path) -> Result<Box<dyn BufRead>> {
    let file = std::fs::File::open(path);
    let file = file.map_err(|source| Error::Io { doing: "cannot read", path: path.to_owned(), source })?;
    plain(BufReader::with_capacity(1 << 18, Box::new(file)), &path.display().to_string())
}

/// The reader of what is in a file, whether compressed or not.
fn plain(mut reader: BufReader<Box<dyn Read>>, shown: &str) -> Result<Box<dyn BufRead>> {
    let failed = |source| Error::Io { doing: "cannot read", path: PathBuf::from(shown), source };
    let start = reader.fill_buf().map_err(failed)?;
    let kind = if start.starts_with(b"\x1f\x8b") {
        "gzip"
    } else if start.starts_with(b"\xfd7zXZ\0") {
        "xz"
    } else if start.starts_with(b"\x28\xb5\x2f\xfd") {
        "zstd"
    } else {
        return Ok(Box::new(reader));
    };
    decompressed(reader, kind, shown)
}

/// What `xz -9` needs, eight times.
#[cfg(feature = "compressed")]
const XZ_MEMORY_KIB: u32 = 512 << 10;

#[cfg(feature = "compressed")]
fn decompressed(reader: BufReader<Box<dyn Read>>, kind: &str, shown: &str) -> Result<Box<dyn BufRead>> {
    let inflated: Box<dyn Read> = match kind {
        "gzip" => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        "xz" => Box::new(lzma_rust2::XzReader::new_mem_limit(reader, true, XZ_MEMORY_KIB)),
        _ => Box::new(Zstd::Between(reader).check(shown)?),
    };
    Ok(Box::new(BufReader::with_capacity(1 << 18, inflated)))
}

#[cfg(not(feature = "compressed"))]
fn decompressed(_: BufReader<Box<dyn Read>>, kind: &str, shown: &str) -> Result<Box<dyn BufRead>> {
    let problem = format!("it is compressed ({kind}), and this build reads plain files alone (feature `compressed`)");
    Err(Error::Text { file: shown.to_owned(), problem })
}

/// Zstandard's frames, one after another: its reader reads one.
#[cfg(feature = "compressed")]
enum Zstd {
    Between(BufReader<Box<dyn Read>>),
    Within(Box<ruzstd::decoding::StreamingDecoder<BufReader<Box<dyn Read>>, ruzstd::decoding::FrameDecoder>>),
    Done,
}

#[cfg(feature = "compressed")]
impl Zstd {
    /// Begins the first frame.
    fn check(mut self, shown: &str) -> Result<Self> {
        let damaged = |e: std::io::Error| Error::Text { file: shown.to_owned(), problem: e.to_string() };
        self.begin().map_err(damaged)?;
        Ok(self)
    }

    /// Begins the next frame, if there is one.
    fn begin(&mut self) -> std::io::Result<()> {
        let mut reader = match std::mem::replace(self, Zstd::Done) {
            Zstd::Between(reader) => reader,
            other => {
                *self = other;
                return Ok(());
            }
        };
        if !reader.fill_buf()?.is_empty() {
            let frame = ruzstd::decoding::StreamingDecoder::new(reader).map_err(std::io::Error::other)?;
            *self = Zstd::Within(Box::new(frame));
        }
        Ok(())
    }
}

#[cfg(feature = "compressed")]
impl Read for Zstd {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            self.begin()?;
            let Zstd::Within(frame) = self else { return Ok(0) };
            let n = frame.read(buffer)?;
            if n > 0 || buffer.is_empty() {
                return Ok(n);
            }
            if let Zstd::Within(frame) = std::mem::replace(self, Zstd::Done) {
                *self = Zstd::Between(frame.into_inner());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(path: &Path, format: &TextFormat) -> Result<Vec<(String, bool)>> {
        let mut pieces = Pieces::open(&Input::File(path.to_owned()), format)?;
        let mut all = Vec::new();
        while let Some(piece) = pieces.next_piece()? {
            all.push((piece.text, piece.ends_document));
        }
        Ok(all)
    }

    fn of(text: &[u8], name: &str, format: &TextFormat) -> Result<Vec<(String, bool)>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        pieces(&path, format)
    }

    #[test]
    fn documents_are_files_paragraphs_or_lines() {
        let text = b"one\ntwo\r\n\n \nthree\n";
        let documents = |split| {
            let format = TextFormat { split, ..Default::default() };
            let all = of(text, "a.txt", &format).unwrap();
            assert!(all.iter().all(|(_, ends)| *ends));
            all.into_iter().map(|(text, _)| text).collect::<Vec<_>>()
        };
        assert_eq!(documents(Split::File), ["one\ntwo\r\n\n \nthree\n"]);
        assert_eq!(documents(Split::Lines), ["one", "two", "three"]);
        assert_eq!(documents(Split::Paragraphs), ["one\ntwo", "three\n"]);
    }

    #[test]
    fn long_documents_are_cut_between_lines_and_nothing_is_lost() {
        let line = "The quick brown fox jumps over the lazy dog; caf\u{e9} \u{4e2d}\n".repeat(9000);
        let words = "caf\u{e9} ".repeat(90_000);
        let letters = "\u{4e2d}".repeat(200_000);
        for text in [line, words, letters] {
            let all = of(text.as_bytes(), "a.txt", &TextFormat::default()).unwrap();
            assert!(all.len() > 3);
            assert_eq!(all.iter().map(|(text, _)| text.as_str()).collect::<String>(), text);
            let ends: Vec<bool> = all.iter().map(|(_, ends)| *ends).collect();
            assert_eq!(ends.iter().filter(|&&ends| ends).count(), 1);
            assert!(ends[ends.len() - 1]);
            let json = format!("{}\n{{\"text\": \"b\"}}\n", serde_json::json!({ "text": text }));
            let from_json = of(json.as_bytes(), "a.jsonl", &TextFormat::default()).unwrap();
            assert_eq!(from_json[..all.len()], all[..], "the same pieces from JSON lines");
            assert_eq!(from_json[all.len()..], [("b".to_owned(), true)]);
        }
    }

    #[test]
    fn what_is_no_text_is_named_with_its_line() {
        let format = TextFormat::default();
        for (text, name, parts) in [
            (&b"good\n\xff\xfe bad\n"[..], "a.txt", ["a.txt", "line 2 is not UTF-8"]),
            (b"PK\x03\x04\0\0\0", "a.txt", ["a.txt", "zero byte"]),
            (b"{\"text\": \"x\"}\n{oh", "a.jsonl", ["a.jsonl", "line 2 is not JSON"]),
            (b"{\"body\": \"x\"}", "a.jsonl", ["no field `text`", "`body`"]),
            (b"{\"text\": 3}", "a.jsonl", ["`text` is no text", "line 1"]),
            (b"[1]", "a.jsonl", ["a.jsonl", "no JSON object"]),
        ] {
            let message = of(text, name, &format).unwrap_err().to_string();
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
        let field = TextFormat { field: "body".into(), ..format };
        assert_eq!(of(b"\n{\"body\": \"x\"}\n\n", "a.jsonl", &field).unwrap(), [("x".to_owned(), true)]);
    }
}
