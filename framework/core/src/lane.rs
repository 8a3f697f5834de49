//! Lanes: within one, order holds.

/// The number of a lane of a channel or a flow.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize,
)]
pub struct Lane(pub u32);

impl Lane {
    /// The lane of a key among `lanes` lanes: `(murmur2(key) & 0x7fffffff) % lanes`, as Kafka's default partitioner
    /// computes it, so that a channel may move between brokers with the order of its keys kept.
    ///
    /// # Panics
    /// If there are no lanes.
    pub fn of(key: &[u8], lanes: u32) -> Lane {
        Lane((murmur2(key) & 0x7fff_ffff) % lanes)
    }
}

/// Murmur2 with Kafka's seed. Source: Austin Appleby's MurmurHash2 (public domain), in the variant of Kafka's Java client.
pub fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    let mix = |k: u32| {
        let k = k.wrapping_mul(M);
        (k ^ (k >> 24)).wrapping_mul(M)
    };
    // The length is hashed as 32 bits; no key is that long.
    let mut hash = SEED ^ u32::try_from(data.len()).unwrap_or(u32::MAX);
    let (words, tail) = data.as_chunks::<4>();
    for word in words {
        hash = hash.wrapping_mul(M) ^ mix(u32::from_le_bytes(*word));
    }
    if !tail.is_empty() {
        for (at, byte) in tail.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * at);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_equals_kafkas() {
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("abc", 479_470_107),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
        ] {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
        }
        assert_eq!(Lane::of(b"21", 10), Lane(((-973_932_308_i32).cast_unsigned() & 0x7fff_ffff) % 10));
    }
}
