//! Arrays: a box of up to six dimensions, each with a lower bound, and its elements row by row.

use bytes::{BufMut as _, BytesMut};
use tidegate_core::Result;

use super::{malformed, put_field, put_null, unfit};
use crate::cursor::Cursor;

/// The server's own limits.
const DIMENSIONS_MAX: usize = 6;
const ELEMENTS_MAX: usize = (1 << 27) - 1;

/// One dimension.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dimension {
    /// How many places it has.
    pub(crate) length: i32,
    /// The number of the first; 1 unless somebody chose otherwise.
    pub(crate) lower: i32,
}

/// An array whose elements are still in binary form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Array<'a> {
    element_oid: u32,
    dimensions: [Dimension; DIMENSIONS_MAX],
    count: usize,
    /// Checked by [`Array::read`] to hold as many elements as the dimensions say.
    elements: &'a [u8],
    len: usize,
}

impl<'a> Array<'a> {
    /// Reads an array of any type.
    ///
    /// # Errors
    /// `stream-malformed`.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self> {
        let mut cursor = Cursor::new(bytes);
        let count = usize::try_from(cursor.i32("dimensions")?)
            .ok()
            .filter(|count| *count <= DIMENSIONS_MAX)
            .ok_or_else(|| malformed("array", bytes))?;
        // Whether any element is null: the elements say so themselves.
        cursor.i32("flags")?;
        let element_oid = cursor.u32("element type")?;
        let mut dimensions = [Dimension::default(); DIMENSIONS_MAX];
        for dimension in &mut dimensions[..count] {
            *dimension = Dimension { length: cursor.i32("length")?, lower: cursor.i32("lower bound")? };
        }
        let len = elements_of(&dimensions[..count]).ok_or_else(|| malformed("array", bytes))?;
        let elements = cursor.rest();
        for _ in 0..len {
            element(&mut cursor)?;
        }
        cursor.end()?;
        Ok(Self { element_oid, dimensions, count, elements, len })
    }

    /// The number of the elements' type.
    pub(crate) fn element_oid(&self) -> u32 {
        self.element_oid
    }

    /// The dimensions; none for an empty array.
    pub(crate) fn dimensions(&self) -> &[Dimension] {
        &self.dimensions[..self.count]
    }

    /// How many elements there are in all dimensions.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The elements, the last dimension running fastest; nothing for null.
    pub(crate) fn elements(&self) -> impl Iterator<Item = Option<&'a [u8]>> + use<'a> {
        let mut cursor = Cursor::new(self.elements);
        (0..self.len).map_while(move |_| element(&mut cursor).ok())
    }
}

/// Writes an array whose elements `put` writes, the last dimension running fastest.
///
/// # Errors
/// What `put` refuses; `value-unfit` when there are not as many elements as the dimensions say, or more than the
/// server takes. What was written by then stays in the buffer: write it inside of [`put_field`], which takes it back.
pub(crate) fn put_array<T>(
    out: &mut BytesMut,
    element_oid: u32,
    dimensions: &[Dimension],
    elements: &[Option<T>],
    mut put: impl FnMut(&mut BytesMut, &T) -> Result<()>,
) -> Result<()> {
    // The server knows one empty array, without dimensions.
    let dimensions = if elements.is_empty() { &[] } else { dimensions };
    if dimensions.len() > DIMENSIONS_MAX || elements_of(dimensions) != Some(elements.len()) {
        return Err(unfit("the elements of an array do not fill its dimensions"));
    }
    out.put_u32(u32::try_from(dimensions.len()).unwrap_or_default());
    out.put_i32(i32::from(elements.iter().any(Option::is_none)));
    out.put_u32(element_oid);
    for dimension in dimensions {
        out.put_i32(dimension.length);
        out.put_i32(dimension.lower);
    }
    for element in elements {
        match element {
            Some(element) => put_field(out, |out| put(out, element))?,
            None => put_null(out),
        }
    }
    Ok(())
}

/// How many elements fill these dimensions; nothing when no array can have them.
fn elements_of(dimensions: &[Dimension]) -> Option<usize> {
    let mut product = usize::from(!dimensions.is_empty());
    for dimension in dimensions {
        // The last place has a number too.
        dimension.lower.checked_add(dimension.length)?;
        product = product.checked_mul(usize::try_from(dimension.length).ok()?)?;
        if product > ELEMENTS_MAX {
            return None;
        }
    }
    Some(product)
}

fn element<'a>(cursor: &mut Cursor<'a>) -> Result<Option<&'a [u8]>> {
    match cursor.i32("length of an element")? {
        -1 => Ok(None),
        length => {
            let length =
                usize::try_from(length).map_err(|_| cursor.malformed("an element has a negative length"))?;
            cursor.bytes(length, "element").map(Some)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{int4, put_int4};
    use super::*;

    const INT4: u32 = 23;

    #[expect(clippy::unnecessary_wraps, reason = "writers of elements may refuse; this one never does")]
    fn put(out: &mut BytesMut, value: &i32) -> Result<()> {
        put_int4(out, *value);
        Ok(())
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(rows in 0_i32..4, columns in 1_i32..4, lower in -3_i32..4, seed: i32) {
            let dimensions = [Dimension { length: rows, lower }, Dimension { length: columns, lower: 1 }];
            let values: Vec<Option<i32>> =
                (0..rows * columns).map(|n| (n % 3 != 1).then_some(seed.wrapping_add(n))).collect();
            let mut out = BytesMut::new();
            put_array(&mut out, INT4, &dimensions, &values, put).unwrap();
            let array = Array::read(&out).unwrap();
            prop_assert_eq!(array.element_oid(), INT4);
            prop_assert_eq!(array.dimensions(), if rows == 0 { &[] } else { &dimensions[..] });
            let read: Vec<_> = array.elements().map(|element| element.map(|bytes| int4(bytes).unwrap())).collect();
            prop_assert_eq!(read, values);
            for cut in 0..out.len() {
                prop_assert!(Array::read(&out[..cut]).is_err());
            }
        }

        #[test]
        fn random_bytes_never_panic(head in 0_u8..8, bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut whole = vec![0, 0, 0, head];
            whole.extend(bytes);
            if let Ok(array) = Array::read(&whole) {
                prop_assert_eq!(array.elements().count(), array.len());
            }
        }
    }

    #[test]
    fn what_does_not_fill_its_dimensions_is_refused() {
        let mut out = BytesMut::new();
        let dimensions = [Dimension { length: 2, lower: 1 }];
        assert!(put_array(&mut out, INT4, &dimensions, &[Some(1)], put).is_err());
        assert!(put_array(&mut out, INT4, &[dimensions[0]; 7], &[Some(1)], put).is_err());
        let huge = [Dimension { length: i32::MAX, lower: 1 }; 6];
        assert!(put_array(&mut out, INT4, &huge, &[Some(1)], put).is_err());
    }
}
