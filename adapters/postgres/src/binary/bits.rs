//! `bit` and `bit varying`.

use tidegate_core::Result;

use super::malformed;
use crate::cursor::Cursor;

/// Reads a `bit` or `bit varying` as a text of zeros and ones.
///
/// # Errors
/// `stream-malformed`.
pub(crate) fn bits(bytes: &[u8]) -> Result<String> {
    let mut cursor = Cursor::new(bytes);
    let count = usize::try_from(cursor.i32("count")?).map_err(|_| malformed("bit", bytes))?;
    let packed = cursor.bytes(count.div_ceil(8), "bits")?;
    cursor.end()?;
    Ok((0..count)
        .map(|place| if packed[place / 8] & (0x80 >> (place % 8)) == 0 { '0' } else { '1' })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_read_from_the_left() {
        assert_eq!(bits(&[0, 0, 0, 10, 0b1010_0000, 0b0100_0000]).unwrap(), "1010000001");
        assert_eq!(bits(&[0, 0, 0, 0]).unwrap(), "");
        for bytes in [&[0, 0, 0, 9, 0][..], &[0, 0, 0, 1, 0, 0], &[0xFF, 0xFF, 0xFF, 0xFF], &[0]] {
            assert!(bits(bytes).is_err(), "{bytes:?}");
        }
    }
}
