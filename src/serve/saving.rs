//! Where views are kept: in the graph's own JSON file, whose other bytes stay as they are; beside it, where there is no such
//! file or rewriting it would take long; in memory, for a graph that is nowhere else.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;
use serde_json::{Map, Value, json};

use crate::Error;
use crate::export::{lock_folder, replace_file};

use super::json_span::{member, members};
use super::library::{InMemory, Library, VIEW_ENDING};
use super::reply::{Answer, Refusal, matches_tag};
use super::view::{View, etag_of};

/// Larger JSON graphs are not rewritten for a pin.
const MAX_REWRITTEN_BYTES: u64 = 64 << 20;

/// One view is saved at a time.
#[derive(Debug, Default)]
pub(super) struct Saving(Mutex<()>);

/// The place of a graph's view.
enum Place {
    Memory(Arc<InMemory>),
    /// The graph's JSON.
    Inside(PathBuf),
    Beside(PathBuf),
}

impl Saving {
    fn lock(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The saved `qParams` of a graph.
    ///
    /// # Errors
    /// No such graph; a file that cannot be read.
    pub fn read(&self, library: &Library, id: &str) -> Answer<Map<String, Value>> {
        read(&place(library, id)?)
    }

    /// Saves what `change` makes of the `qParams` that are there, if those are what the caller has seen. Gives the new ones.
    ///
    /// # Errors
    /// 412 with the view as it is, where somebody else has saved since; a file that cannot be written, which is as before.
    pub fn save(
        &self,
        library: &Library,
        id: &str,
        if_match: Option<&str>,
        change: impl FnOnce(&Map<String, Value>) -> Map<String, Value>,
    ) -> Answer<Result<Map<String, Value>, Map<String, Value>>> {
        let _one = self.lock();
        let place = place(library, id)?;
        // Another program that saves into the same folder waits.
        let _lock = match &place {
            Place::Inside(path) | Place::Beside(path) => path.parent().and_then(lock_folder),
            Place::Memory(_) => None,
        };
        let before = read(&place)?;
        if if_match.is_some_and(|known| !matches_tag(known, &etag_of(&before))) {
            return Ok(Err(before));
        }
        let after = change(&before);
        match &place {
            Place::Memory(graph) => *graph.q_params.lock().unwrap_or_else(PoisonError::into_inner) = after.clone(),
            Place::Inside(path) => {
                let bytes = std::fs::read(path).map_err(|source| unreadable(path, source))?;
                let text = with_q_params(&bytes, &after).ok_or_else(|| {
                    let message = format!("{}: its `qParams` cannot be told", file_name(path));
                    Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "damaged", message)
                })?;
                replace_file(path, |writer| text.iter().try_for_each(|part| writer.write_all(part)))?;
                library.touched(path);
            }
            Place::Beside(path) => {
                let view = json!({ "qParams": after });
                replace_file(path, |writer| {
                    serde_json::to_writer_pretty(&mut *writer, &view)?;
                    writer.write_all(b"\n")
                })?;
            }
        }
        Ok(Ok(after))
    }

    /// As [`Saving::read`], as a view.
    ///
    /// # Errors
    /// As [`Saving::read`].
    pub fn view(&self, library: &Library, id: &str) -> Answer<View> {
        Ok(View::of_q_params(&self.read(library, id)?))
    }
}

fn place(library: &Library, id: &str) -> Answer<Place> {
    if let Some(graph) = library.in_memory(id) {
        return Ok(Place::Memory(graph));
    }
    let files = library.files_of(id).ok_or_else(|| Refusal::not_found(format!("there is no graph {id:?}")))?;
    let is_small = |path: &PathBuf| path.metadata().is_ok_and(|file| file.len() <= MAX_REWRITTEN_BYTES);
    match (files.json, files.raw) {
        (Some(json), _) if is_small(&json) => Ok(Place::Inside(json)),
        (Some(other), _) | (None, Some(other)) => Ok(Place::Beside(other.with_file_name(format!("{id}{VIEW_ENDING}")))),
        (None, None) => Err(Refusal::not_found(format!("there is no graph {id:?}"))),
    }
}

fn read(place: &Place) -> Answer<Map<String, Value>> {
    match place {
        Place::Memory(graph) => Ok(graph.q_params.lock().unwrap_or_else(PoisonError::into_inner).clone()),
        Place::Inside(path) | Place::Beside(path) => {
            // A link would be followed to wherever it leads.
            if path.is_symlink() && matches!(place, Place::Beside(_)) {
                return Err(Refusal::new(StatusCode::FORBIDDEN, "forbidden", format!("{} is a link", file_name(path))));
            }
            match std::fs::read(path) {
                Ok(bytes) => match member(&bytes, "qParams") {
                    Some(span) => Ok(serde_json::from_slice(&bytes[span]).unwrap_or_default()),
                    None => Ok(Map::new()),
                },
                Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(Map::new()),
                Err(source) => Err(unreadable(path, source).into()),
            }
        }
    }
}

fn unreadable(path: &Path, source: std::io::Error) -> Error {
    Error::Io { doing: "cannot read", path: path.to_owned(), source }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The text of a graph with other `qParams`, as parts one after the other; every other byte is as it was. `None` where
/// the text is no object, or has two of them.
fn with_q_params<'a>(text: &'a [u8], q_params: &Map<String, Value>) -> Option<[std::borrow::Cow<'a, [u8]>; 3]> {
    let own = Value::Object(q_params.clone()).to_string().into_bytes();
    if let Some(span) = member(text, "qParams") {
        return Some([text[..span.start].into(), own.into(), text[span.end..].into()]);
    }
    let all = members(text, |_| false);
    let has_two = all.iter().any(|(key, _)| &text[key.clone()] == b"qParams");
    // As the first member, before the quote of the one that is first now.
    let first = all.first().filter(|_| !has_two)?.0.start - 1;
    let own = [b"\"qParams\": ".as_slice(), &own, b", "].concat();
    Some([text[..first].into(), own.into(), text[first..].into()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_bytes_of_a_graph_stay_as_they_are() {
        let q_params: Map<String, Value> = [("pinnedIds".to_owned(), json!(["a"]))].into_iter().collect();
        let changed =
            |text: &str| Some(String::from_utf8(with_q_params(text.as_bytes(), &q_params)?.concat()).unwrap());
        let kept = changed("{\n \"metadata\": {},\t\"qParams\" : {\"old\": [1]} , \"links\": [1.0e-3]\n}\n");
        assert_eq!(
            kept.unwrap(),
            "{\n \"metadata\": {},\t\"qParams\" : {\"pinnedIds\":[\"a\"]} , \"links\": [1.0e-3]\n}\n"
        );
        assert_eq!(changed("{ \"a\": 1 }").unwrap(), "{ \"qParams\": {\"pinnedIds\":[\"a\"]}, \"a\": 1 }");
        assert_eq!(changed("{\"qParams\": {}, \"qParams\": {}}"), None);
        assert_eq!(changed("[]"), None);
    }
}
