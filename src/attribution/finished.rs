//! Rows that are finished, kept while a sampled graph is computed, so that another run can go on from them: the sweep after
//! a layer, then the rows of the nodes.

use std::borrow::Cow;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::sampled::KeptRows;
use crate::error::{Error, Result};
use crate::graph::{FeatureId, SampledInfluence, Scores, SweepAt, SweepKeeper, SweepState};
use crate::hash;

/// Keeping takes at most this part of the time.
const MOST_OF_TIME: u32 = 20;

/// Where finished rows are kept.
pub trait RowStore: Debug + Send + Sync {
    /// What an earlier run has kept; `None` if none has.
    ///
    /// # Errors
    /// Those of reading.
    fn read(&self) -> Result<Option<FinishedRows<'static>>>;

    /// Keeps rows in place of those that were kept before.
    ///
    /// # Errors
    /// Those of writing; what was kept stays then.
    fn write(&self, rows: &FinishedRows) -> Result<()>;

    /// What it is called in messages: a file's name.
    fn name(&self) -> String;

    /// How long rows are not kept after they were, at least; zero: all are kept at once, whatever that takes.
    fn every(&self) -> Duration {
        Duration::from_secs(10)
    }
}

/// Finished rows of a graph, as columns of numbers.
#[derive(Clone, Debug)]
pub struct FinishedRows<'a> {
    /// Of which graph they are, and what is done.
    pub about: FinishedAbout,
    /// By name.
    pub columns: Vec<(String, FinishedColumn<'a>)>,
}

impl FinishedRows<'_> {
    /// What [`Error::Damaged`] calls what a store keeps.
    pub const FORMAT: &'static str = "finished rows";
}

/// Of which graph finished rows are, and what is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinishedAbout {
    /// [`crate::graph::GraphMeta::trace_id`]
    pub trace_id: String,
    /// A hash of the ids of the active features, in 16 hexadecimal digits.
    pub features: String,
    /// What is done.
    pub done: FinishedPart,
}

/// What is done of a graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum FinishedPart {
    /// The sweep, down to a layer.
    Sweep {
        /// Layers below this one are left.
        layers_left: usize,
        /// Pairs of uncertain visits so far.
        n_pairs: u64,
    },
    /// The sweep, and some rows of the nodes.
    Rows,
}

/// Numbers of a column.
#[derive(Clone, Debug)]
pub enum FinishedColumn<'a> {
    /// 64 bits, whole.
    I64(Cow<'a, [i64]>),
    /// 64 bits.
    F64(Cow<'a, [f64]>),
    /// 32 bits.
    F32(Cow<'a, [f32]>),
}

/// Keeps finished rows of one graph now and then.
pub(super) struct Keeper {
    store: Arc<dyn RowStore>,
    trace_id: String,
    features: String,
    /// What an earlier run has kept, until it is taken.
    sweep: Option<SweepState>,
    rows: Option<(SampledInfluence, Vec<bool>, FinishedRows<'static>)>,
    last: Instant,
    took: Duration,
}

impl Keeper {
    /// Reads what was kept for this graph. `n_vectors` and `n_columns` are the sizes of the sweep.
    ///
    /// # Errors
    /// Those of the store; [`Error::OtherRows`] for rows of another graph, [`Error::Damaged`] for those of no graph.
    pub(super) fn new(
        store: Arc<dyn RowStore>,
        trace_id: &str,
        active: &[FeatureId],
        (n_vectors, n_columns, n_layers): (usize, usize, usize),
    ) -> Result<Self> {
        let numbers = active.iter().flat_map(|id| [id.layer, id.pos, id.feature]);
        let features = format!("{:016x}", hash::fnv1a(hash::START, numbers.flat_map(u32::to_le_bytes)));
        let mut keeper = Self {
            store,
            trace_id: trace_id.to_owned(),
            features,
            sweep: None,
            rows: None,
            last: Instant::now(),
            took: Duration::ZERO,
        };
        let Some(mut kept) = keeper.store.read()? else { return Ok(keeper) };
        let name = keeper.store.name();
        let about = &kept.about;
        for (what, there, here) in
            [("trace_id", &about.trace_id, &keeper.trace_id), ("active features", &about.features, &keeper.features)]
        {
            if there != here {
                let (there, here) = (there.clone(), here.clone());
                return Err(Error::OtherRows { file: name, what, there, here });
            }
        }
        let mut columns = Columns { name: &name, columns: &mut kept.columns };
        let visited = columns.indices("visited", active.len())?;
        match about.done {
            FinishedPart::Sweep { layers_left, n_pairs } => {
                if layers_left > n_layers {
                    return Err(columns.damaged(format!("{layers_left} layers are left of {n_layers}")));
                }
                let vectors = (0..n_vectors).map(|v| columns.f64s(&vector(v), n_columns)).collect::<Result<_>>()?;
                let to_errors = columns.f64s("to_errors", n_vectors)?;
                keeper.sweep = Some(SweepState { layers_left, visited, n_pairs, vectors, to_errors });
            }
            FinishedPart::Rows => {
                let nodes = columns.f64s("nodes", n_columns)?;
                let uncertainty = columns.f64s("uncertainty", n_columns)?;
                let scores = columns.f64s("scores", 4)?;
                let is_done = columns.i64s("is_done", None)?.into_iter().map(|done| done != 0).collect();
                let scores = |at: usize| Scores { replacement: scores[at], completeness: scores[at + 1] };
                let (scores, score_uncertainty) = (scores(0), scores(2));
                let influence = SampledInfluence { nodes, uncertainty, visited, scores, score_uncertainty };
                keeper.rows = Some((influence, is_done, kept));
            }
        }
        Ok(keeper)
    }

    /// The finished sweep of an earlier run, and which rows it had done, with them.
    pub(super) fn take_rows(&mut self) -> Option<(SampledInfluence, Vec<bool>, FinishedRows<'static>)> {
        self.rows.take()
    }

    /// Puts rows that were kept into `rows`.
    ///
    /// # Errors
    /// [`Error::Damaged`] for other sizes.
    pub(super) fn restore(&self, is_done: &[bool], mut kept: FinishedRows, rows: &mut KeptRows) -> Result<()> {
        let name = self.store.name();
        let mut columns = Columns { name: &name, columns: &mut kept.columns };
        if is_done.len() != rows.n_rows() {
            return Err(columns.damaged(format!("`is_done` is of {} rows, expected {}", is_done.len(), rows.n_rows())));
        }
        rows.columns_mut().into_iter().try_for_each(|(name, values)| {
            *values = columns.f32s(name, values.len())?;
            Ok(())
        })
    }

    /// Whether it is time to keep what is done.
    pub(super) fn is_due(&self) -> bool {
        let every = self.store.every();
        every.is_zero() || self.last.elapsed() >= every.max(MOST_OF_TIME * self.took)
    }

    /// Keeps the sweep's result, and the rows that are done.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) fn keep_rows(&mut self, found: &SampledInfluence, is_done: &[bool], rows: &KeptRows) -> Result<()> {
        let scores = [found.scores, found.score_uncertainty];
        let scores = scores.iter().flat_map(|scores| [scores.replacement, scores.completeness]).collect::<Vec<f64>>();
        let mut columns = vec![
            i64s("visited", found.visited.iter().map(|&feature| feature as i64)),
            ("nodes".to_owned(), FinishedColumn::F64(Cow::Borrowed(&found.nodes))),
            ("uncertainty".to_owned(), FinishedColumn::F64(Cow::Borrowed(&found.uncertainty))),
            ("scores".to_owned(), FinishedColumn::F64(Cow::Owned(scores))),
            i64s("is_done", is_done.iter().map(|&done| i64::from(done))),
        ];
        let of_rows = rows.columns().into_iter();
        columns.extend(of_rows.map(|(name, values)| (name.to_owned(), FinishedColumn::F32(Cow::Borrowed(values)))));
        self.keep(FinishedPart::Rows, columns)
    }

    fn keep(&mut self, done: FinishedPart, columns: Vec<(String, FinishedColumn)>) -> Result<()> {
        let start = Instant::now();
        let about = FinishedAbout { trace_id: self.trace_id.clone(), features: self.features.clone(), done };
        self.store.write(&FinishedRows { about, columns })?;
        (self.took, self.last) = (start.elapsed(), Instant::now());
        Ok(())
    }
}

impl SweepKeeper for Keeper {
    fn begin(&mut self) -> Option<SweepState> {
        self.sweep.take()
    }

    fn layer_done(&mut self, at: &SweepAt) -> Result<()> {
        if !self.is_due() {
            return Ok(());
        }
        let mut columns = vec![
            i64s("visited", at.visited.iter().map(|&feature| feature as i64)),
            ("to_errors".to_owned(), FinishedColumn::F64(Cow::Borrowed(at.to_errors))),
        ];
        let vectors = at.vectors.iter().enumerate();
        columns.extend(vectors.map(|(v, values)| (vector(v), FinishedColumn::F64(Cow::Borrowed(values)))));
        self.keep(FinishedPart::Sweep { layers_left: at.layers_left, n_pairs: at.n_pairs }, columns)
    }
}

fn vector(number: usize) -> String {
    format!("vector_{number}")
}

fn i64s(name: &str, values: impl Iterator<Item = i64>) -> (String, FinishedColumn<'static>) {
    (name.to_owned(), FinishedColumn::I64(Cow::Owned(values.collect())))
}

/// The columns of a store, taken one by one.
struct Columns<'a, 'b> {
    name: &'a str,
    columns: &'a mut Vec<(String, FinishedColumn<'b>)>,
}

impl<'b> Columns<'_, 'b> {
    fn damaged(&self, reason: String) -> Error {
        Error::Damaged { file: self.name.to_owned(), format: FinishedRows::FORMAT, reason }
    }

    fn take(&mut self, name: &str) -> Result<FinishedColumn<'b>> {
        match self.columns.iter().position(|(other, _)| other == name) {
            Some(at) => Ok(self.columns.swap_remove(at).1),
            None => Err(self.damaged(format!("`{name}` is missing"))),
        }
    }

    /// A column of one type of numbers and, where `len` says so, of a length.
    fn of<T: Clone + 'b>(
        &mut self,
        name: &str,
        len: Option<usize>,
        values: impl FnOnce(FinishedColumn<'b>) -> Option<Cow<'b, [T]>>,
    ) -> Result<Vec<T>> {
        let Some(values) = values(self.take(name)?) else {
            return Err(self.damaged(format!("`{name}` is of other numbers")));
        };
        match len.filter(|&len| len != values.len()) {
            Some(len) => Err(self.damaged(format!("`{name}` has {} numbers, expected {len}", values.len()))),
            None => Ok(values.into_owned()),
        }
    }

    fn i64s(&mut self, name: &str, len: Option<usize>) -> Result<Vec<i64>> {
        self.of(name, len, |column| if let FinishedColumn::I64(values) = column { Some(values) } else { None })
    }

    fn f64s(&mut self, name: &str, len: usize) -> Result<Vec<f64>> {
        let of = |column| if let FinishedColumn::F64(values) = column { Some(values) } else { None };
        let values = self.of(name, Some(len), of)?;
        match values.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(self.damaged(format!("`{name}` holds {value}"))),
            None => Ok(values),
        }
    }

    fn f32s(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        self.of(name, Some(len), |column| if let FinishedColumn::F32(values) = column { Some(values) } else { None })
    }

    /// Numbers of features below `n_features`.
    fn indices(&mut self, name: &str, n_features: usize) -> Result<Vec<usize>> {
        let values = self.i64s(name, None)?;
        let index = |value: i64| usize::try_from(value).ok().filter(|&index| index < n_features);
        let found: Option<Vec<usize>> = values.iter().map(|&value| index(value)).collect();
        found.ok_or_else(|| self.damaged(format!("`{name}` names features past the {n_features} that are active")))
    }
}
