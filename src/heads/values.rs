//! What the sources of edges give to the values of every head, layer by layer.

use candle_core::Device;
use rayon::prelude::*;

use crate::error::Result;
use crate::job::Job;
use crate::replacement::{Origin, PushUp};

/// At most this many sources are followed together, so that there is work for every thread.
const GROUP: usize = 64;

/// Sources at one position.
pub(super) struct Group {
    pub pos: usize,
    pub origins: Vec<Origin>,
    /// Sources that are there at each layer's attention: the first ones. `[n_layers]`
    pub n_there: Vec<usize>,
    /// Their values. `[n_layers]` of `[n_pos - pos, n_kv_heads · d_head, n_there]`
    pub values: Vec<Vec<f32>>,
}

/// Sources as [`PushUp::push`] follows them together, without values yet; `origins` are sorted by [`PushUp::sort`].
pub(super) fn groups(push: &PushUp, origins: &[Origin]) -> Vec<Group> {
    let at_one_position = origins.chunk_by(|&a, &b| push.position(a) == push.position(b));
    let group = |origins: &[Origin]| Group {
        pos: push.position(origins[0]),
        origins: origins.to_vec(),
        n_there: push.n_there(origins),
        values: Vec::new(),
    };
    at_one_position.flat_map(|origins| origins.chunks(GROUP)).map(group).collect()
}

impl Group {
    /// Values of a group, of `width` a position: how many there will be below `end`.
    pub fn n_values(&self, n_pos: usize, width: usize, end: usize) -> usize {
        self.n_there[..end].iter().sum::<usize>() * (n_pos - self.pos) * width
    }
}

/// Follows every group up to below layer `end`.
pub(super) fn follow(push: &PushUp, groups: &mut [Group], end: usize, job: &Job) -> Result<()> {
    groups.par_iter_mut().with_max_len(1).try_for_each(|group| {
        job.check()?;
        let mut all = vec![Vec::new(); end];
        push.push(group.pos, &group.origins, end, &mut |layer, values, _| {
            all[layer] = values.transpose(1, 2)?.flatten_all()?.to_device(&Device::Cpu)?.to_vec1()?;
            Ok(())
        })?;
        group.values = all;
        Ok(())
    })
}
