//! `weights`: files of tensors, opened, checked and memory-mapped; the tokenizer.
