//! Things side by side in a given order, each as near to its wanted place as the others allow: boxes of a line, ports of a
//! border, lanes of a gap.

/// Places as near to what is wanted, in this order, as widths and a gap between them allow within `room`; closer together
/// where there is too little of it.
pub(super) fn apart(wanted: &[f64], widths: &[f64], gap: f64, (left, right): (f64, f64)) -> Vec<f64> {
    let mut offsets = vec![0.0f64; wanted.len()];
    for at in 1..wanted.len() {
        offsets[at] = offsets[at - 1] + (widths[at - 1] + widths[at]) / 2.0 + gap;
    }
    let needed = offsets.last().copied().unwrap_or(0.0);
    let room = (right - left).max(0.0);
    if needed > room {
        offsets.iter_mut().for_each(|offset| *offset *= room / needed);
    }
    let last = left + (room - needed).max(0.0);
    // Least squares in ascending order: neighbours that would swap move together (pool adjacent violators).
    let mut blocks: Vec<(f64, usize)> = Vec::new();
    for (want, offset) in wanted.iter().zip(&offsets) {
        blocks.push((want - offset, 1));
        while let [.., (before, n_before), (mean, n)] = blocks[..]
            && before > mean
        {
            blocks.truncate(blocks.len() - 2);
            let together = n_before + n;
            blocks.push(((before * n_before as f64 + mean * n as f64) / together as f64, together));
        }
    }
    let means = blocks.into_iter().flat_map(|(mean, n)| std::iter::repeat_n(mean, n));
    means.zip(offsets).map(|(mean, offset)| mean.clamp(left, last) + offset).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_apart_and_in_order() {
        let places = apart(&[10.0, 10.0, 30.0], &[2.0, 4.0, 2.0], 3.0, (0.0, 100.0));
        assert_eq!(places, [7.0, 13.0, 30.0]);
        let crowded = apart(&[5.0; 4], &[6.0; 4], 4.0, (0.0, 12.0));
        assert_eq!(crowded, [0.0, 4.0, 8.0, 12.0]);
        let at_the_border = apart(&[99.0, 120.0], &[2.0; 2], 2.0, (0.0, 100.0));
        assert_eq!(at_the_border, [96.0, 100.0]);
        assert!(apart(&[], &[], 1.0, (0.0, 1.0)).is_empty());
    }
}
