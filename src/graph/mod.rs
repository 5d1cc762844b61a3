//! `graph`: nodes, edges, influence, scores and the pruned circuit. Plain data: no tensors library in here.
