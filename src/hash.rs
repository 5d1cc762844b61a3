//! `hash`: FNV-1a of 64 bits: short, and the same for ever, which the standard library does not promise of its own. It tells
//! apart what was not made to deceive.

/// The hash of nothing.
pub(crate) const START: u64 = 0xcbf2_9ce4_8422_2325;

/// What each step multiplies by.
pub(crate) const PRIME: u64 = 0x0000_0100_0000_01b3;

/// The hash of what `hash` is of, followed by these bytes.
pub(crate) fn fnv1a(hash: u64, bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_that_were_published() {
        // Fowler, Noll and Vo's own test vectors.
        assert_eq!(fnv1a(START, *b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(START, *b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(START, *b"foobar"), 0x8594_4171_f739_67e8);
        assert_eq!(fnv1a(fnv1a(START, *b"foo"), *b"bar"), fnv1a(START, *b"foobar"));
    }
}
