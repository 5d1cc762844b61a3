//! Directions by name: from a file, or a sum of tokens.

use std::path::Path;

use super::Tracer;
use crate::weights::Checkpoint;
use crate::{Error, Result};

/// A direction that the unembedding's input can have, and what it is called.
#[derive(Debug, PartialEq)]
pub struct NamedDirection {
    /// The tensor's name, or the sum as it is printed.
    pub label: String,
    /// `[d_model]`
    pub vec: Vec<f32>,
}

/// One term of a sum of tokens.
#[derive(Debug, PartialEq)]
struct Term {
    factor: f32,
    token: String,
}

/// The directions that `text` names: every tensor of a safetensors file (of `FILE:NAME` the one of this name), or a sum of
/// quoted tokens such as `" Austin" + " Dallas" - 2 * " Sacramento"`, whose direction is that sum of what the tokens' own
/// targets are (definitions 4).
///
/// # Errors
/// A file that cannot be read or holds other shapes than `[d_model]`; a sum that is none, or with a text that is no token;
/// a direction of zeros.
pub fn directions(text: &str, tracer: &Tracer) -> Result<Vec<NamedDirection>> {
    let found = match parse_sum(text) {
        Some(terms) => vec![sum(&terms, tracer)?],
        None => from_file(text, tracer)?,
    };
    found.iter().try_for_each(check_not_zero)?;
    Ok(found)
}

fn from_file(text: &str, tracer: &Tracer) -> Result<Vec<NamedDirection>> {
    let (path, name) = match text.rsplit_once(':') {
        Some((path, name)) if !Path::new(text).exists() && Path::new(path).exists() => (path, Some(name)),
        _ => (text, None),
    };
    let d_model = tracer.replacement().model.config.d_model;
    let file = Checkpoint::open_safetensors(&[path.into()])?;
    let names: Vec<String> = match name {
        Some(name) => vec![name.to_owned()],
        None => file.names().map(str::to_owned).collect(),
    };
    if names.is_empty() {
        let expected = "a file with a direction: it has no tensors";
        return Err(Error::Spec { text: path.to_owned(), expected });
    }
    let direction = |name: String| {
        let vec = file.tensor(&name, &[d_model])?.flatten_all()?.to_dtype(candle_core::DType::F32)?.to_vec1()?;
        Ok(NamedDirection { label: name, vec })
    };
    names.into_iter().map(direction).collect()
}

fn sum(terms: &[Term], tracer: &Tracer) -> Result<NamedDirection> {
    let tokens = terms.iter().map(|term| tracer.token(&term.token)).collect::<Result<Vec<u32>>>()?;
    let model = &tracer.replacement().model;
    let rows = model.unembedding_rows(&tokens)?.to_vec2::<f32>()?;
    // A token's target is its row less the mean row.
    let n_values = model.config.d_model;
    let mean: Vec<f32> = model.mean_row()?.flatten_all()?.to_vec1()?;
    let mut vec = vec![0f32; n_values];
    for (term, row) in terms.iter().zip(&rows) {
        let values = row.iter().zip(&mean).map(|(value, mean)| term.factor * (value - mean));
        vec.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
    Ok(NamedDirection { label: label(terms), vec })
}

fn label(terms: &[Term]) -> String {
    let mut label = String::new();
    for term in terms {
        label.push_str(match (label.is_empty(), term.factor < 0.0) {
            (true, true) => "-",
            (true, false) => "",
            (false, true) => " - ",
            (false, false) => " + ",
        });
        if term.factor.abs() != 1.0 {
            label.push_str(&format!("{} * ", term.factor.abs()));
        }
        label.push_str(&format!("{:?}", term.token));
    }
    label
}

/// `None` for what is no sum of quoted tokens, and so may be a file.
fn parse_sum(text: &str) -> Option<Vec<Term>> {
    let mut terms = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let signed =
            rest.strip_prefix('-').map(|after| (-1.0, after)).or(rest.strip_prefix('+').map(|after| (1.0, after)));
        let (sign, after) = match signed {
            Some(signed) => signed,
            None if terms.is_empty() => (1.0, rest),
            None => return None,
        };
        let after = after.trim_start();
        let (factor, quoted) = match after.split_once('*') {
            Some((number, after)) if !number.contains('"') => (number.trim().parse::<f32>().ok()?, after.trim_start()),
            _ => (1.0, after),
        };
        // A quoted token is a JSON string: `"\n"` is a line break.
        let mut tokens = serde_json::Deserializer::from_str(quoted).into_iter::<String>();
        let token = tokens.next()?.ok()?;
        rest = quoted[tokens.byte_offset()..].trim_start();
        terms.push(Term { factor: sign * factor, token });
    }
    let is_sum = !terms.is_empty() && terms.iter().all(|term| term.factor.is_finite());
    is_sum.then_some(terms)
}

/// # Errors
/// A direction that is zero asks for nothing.
fn check_not_zero(direction: &NamedDirection) -> Result<()> {
    match direction.vec.iter().any(|value| *value != 0.0) {
        true => Ok(()),
        false => Err(Error::Spec { text: direction.label.clone(), expected: "a direction other than zero" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_tokens_are_told_from_files() {
        let shown = |text: &str| parse_sum(text).map(|terms| label(&terms));
        assert_eq!(shown(r#"" Austin" - " Sacramento""#).as_deref(), Some(r#"" Austin" - " Sacramento""#));
        assert_eq!(shown(r#"-" a"+2*" b" - 0.5 * "\n""#).as_deref(), Some(r#"-" a" + 2 * " b" - 0.5 * "\n""#));
        for file in
            ["steer.safetensors", "a+b.safetensors", "dir/x.safetensors:v", r#"" a" " b""#, r#"" a" +"#, r#"" a"#]
        {
            assert_eq!(shown(file), None, "{file}");
        }
    }
}
