//! Where the effects of a batch's sources go: on the CPU straight into the rows of the graph; on other devices into
//! rows beside the gradient, which are copied once the batch is done, while the next one is computed.

use candle_core::{Device, Result, Storage, Tensor, bail};

use super::cuda::{Copier, Copying, tensor_arg};
use super::edge_rows::{NAME, SourceVecs, edge_rows, launch_on_tensors, sizes};
use super::gpu::Gpu;
use super::{RaggedBatch, f32_slice};

/// One row of the graph, while it is computed.
#[derive(Debug)]
pub struct HostRow<'a> {
    /// Effects of all nodes. `[n_nodes]`
    pub effects: &'a mut [f32],
    /// Effect of everything that is no node.
    pub bias: &'a mut f32,
}

/// Makes the rows of batches, and finishes them.
#[derive(Debug)]
pub struct RowCollector {
    device: Device,
    n_pos: usize,
    /// Where rows are computed on a GPU.
    copier: Option<Copier>,
}

/// The rows of one batch.
#[derive(Debug)]
pub struct BatchRows<'a> {
    host: Vec<HostRow<'a>>,
    n_nodes: usize,
    /// On other devices than the CPU: the effects, then those on the bias effect, a column a position.
    /// `[n_targets, n_nodes + n_pos]`
    on_device: Option<Tensor>,
}

/// Rows of a batch that are still computed, or copied to the host.
#[must_use = "rows are on the host only after RowCollector::wait"]
#[derive(Debug)]
pub struct PendingRows<'a> {
    host: Vec<HostRow<'a>>,
    n_nodes: usize,
    /// The copy under way; on the CPU there is none.
    copying: Option<Copying>,
}

impl RowCollector {
    /// For graphs of `n_pos` positions whose gradients are on `device`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn new(device: &Device, n_pos: usize) -> Result<Self> {
        Ok(Self {
            device: device.clone(),
            n_pos,
            copier: match device {
                Device::Cuda(device) => Some(Copier::new(device)?),
                _ => None,
            },
        })
    }

    /// Rows of a batch, zero so far, with `n_nodes` columns; `host` is where they are to be, one a target.
    ///
    /// # Errors
    /// Those of the device.
    pub fn batch<'a>(&self, host: Vec<HostRow<'a>>, n_nodes: usize) -> Result<BatchRows<'a>> {
        let on_device = match &self.device {
            Device::Cpu => None,
            device => Some(Tensor::zeros((host.len(), n_nodes + self.n_pos), candle_core::DType::F32, device)?),
        };
        Ok(BatchRows { host, n_nodes, on_device })
    }

    /// Ends a batch: starts to copy its rows to the host.
    ///
    /// # Errors
    /// Those of the device.
    pub fn finish<'a>(&self, rows: BatchRows<'a>) -> Result<PendingRows<'a>> {
        let copying = match (&self.copier, rows.on_device) {
            (Some(copier), Some(on_device)) => Some(copier.start(on_device)?),
            _ => None,
        };
        Ok(PendingRows { host: rows.host, n_nodes: rows.n_nodes, copying })
    }

    /// Waits until the rows of a batch are on the host.
    ///
    /// # Errors
    /// Those of the device.
    pub fn wait(&self, rows: PendingRows) -> Result<()> {
        let (Some(copier), Some(copying)) = (&self.copier, rows.copying) else { return Ok(()) };
        copier.finish(copying, |values| {
            for (row, values) in rows.host.into_iter().zip(values.chunks_exact(rows.n_nodes + self.n_pos)) {
                let (effects, biases) = values.split_at(rows.n_nodes);
                row.effects.copy_from_slice(effects);
                *row.bias += biases.iter().sum::<f32>();
            }
        })
    }
}

impl BatchRows<'_> {
    /// Number of targets.
    pub fn len(&self) -> usize {
        self.host.len()
    }

    /// Whether there is no target.
    pub fn is_empty(&self) -> bool {
        self.host.is_empty()
    }

    /// The rows in the device's memory, where they are not on the CPU. `[n_targets, n_nodes + n_pos]`
    pub fn on_device(&self) -> Option<&Tensor> {
        self.on_device.as_ref()
    }

    /// Adds the effects of sources on the batch's targets: [`edge_rows`], each at its column.
    ///
    /// `columns` has one a source; `None` stands for the bias effect, once a position at most.
    ///
    /// # Shapes
    /// `grad` `[n_rows, width]` in the layout of `ragged`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn add(
        &mut self,
        grad: &Tensor,
        sources: &SourceVecs,
        columns: &[Option<usize>],
        ragged: &RaggedBatch,
    ) -> Result<()> {
        if columns.len() != sources.vecs.dim(0)? || ragged.n_targets() != self.host.len() {
            bail!("{} columns and {} rows for {:?}", columns.len(), self.host.len(), sources.vecs.shape());
        }
        if let Some(column) = columns.iter().flatten().find(|&&column| column >= self.n_nodes) {
            bail!("column {column} in rows of {} nodes", self.n_nodes);
        }
        match &self.on_device {
            Some(rows) => add_on_device(rows, self.n_nodes, grad, sources, columns, ragged),
            None => self.add_on_cpu(&edge_rows(grad, sources, ragged)?, columns),
        }
    }

    /// Adds effects that are there already: column by column, the same for all targets. On the CPU.
    ///
    /// # Shapes
    /// `effects` `[n_targets, columns.len()]`, row-major.
    ///
    /// # Errors
    /// Lengths that do not fit; rows on another device.
    pub fn add_effects(&mut self, effects: &[f32], columns: &[usize]) -> Result<()> {
        let fits = effects.len() == columns.len() * self.host.len();
        if !fits || self.on_device.is_some() || columns.iter().any(|&column| column >= self.n_nodes) {
            bail!("{} effects for {} columns and {} rows on the CPU", effects.len(), columns.len(), self.host.len());
        }
        for (row, effects) in self.host.iter_mut().zip(effects.chunks_exact(columns.len().max(1))) {
            columns.iter().zip(effects).for_each(|(&column, effect)| row.effects[column] += effect);
        }
        Ok(())
    }

    fn add_on_cpu(&mut self, effects: &Tensor, columns: &[Option<usize>]) -> Result<()> {
        // The transposed view of the product: sources by targets.
        let by_source = effects.t()?;
        let (storage, layout) = by_source.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { bail!("effects are not on the CPU") };
        let values = f32_slice("batch_rows", storage, layout)?;
        let n_targets = self.host.len();
        for (target, row) in self.host.iter_mut().enumerate() {
            for (source, column) in columns.iter().enumerate() {
                let effect = values[source * n_targets + target];
                match column {
                    Some(column) => row.effects[*column] += effect,
                    None => *row.bias += effect,
                }
            }
        }
        Ok(())
    }
}

fn add_on_device(
    rows: &Tensor,
    n_nodes: usize,
    grad: &Tensor,
    sources: &SourceVecs,
    columns: &[Option<usize>],
    ragged: &RaggedBatch,
) -> Result<()> {
    sizes(grad.shape(), sources.vecs.shape(), ragged, sources)?;
    let device = rows.device().as_cuda_device()?;
    let columns = device.upload(&bias_columns(columns, &sources.starts, n_nodes))?;
    let rows = (tensor_arg(NAME, rows)?, rows.dim(1)?);
    let grad = tensor_arg(NAME, grad)?;
    // SAFETY: sizes are checked; columns are below the row's length by construction, and all different.
    unsafe { launch_on_tensors(device, rows, grad, sources, device.arg(&columns), ragged) }
}

/// Columns as the kernel takes them: a source of the bias effect gets a column after the nodes, that of its position,
/// so that no two sources write one element.
pub fn bias_columns(columns: &[Option<usize>], starts: &[usize], n_nodes: usize) -> Vec<u32> {
    let positions = starts.windows(2).enumerate().flat_map(|(pos, s)| std::iter::repeat_n(pos, s[1] - s[0]));
    columns.iter().zip(positions).map(|(column, pos)| column.unwrap_or(n_nodes + pos) as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::bias_columns;

    #[test]
    fn the_bias_of_each_position_has_a_column_of_its_own() {
        let columns = [Some(3), None, None, Some(0)];
        assert_eq!(bias_columns(&columns, &[0, 2, 2, 4], 5), [3, 5, 7, 0]);
    }
}
