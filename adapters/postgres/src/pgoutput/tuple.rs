//! Rows and columns inside a message, walked once when read and again by whoever needs them.

use std::iter::FusedIterator;

use tidegate_core::Result;

use crate::cursor::Cursor;

/// A row: its cells in the order of the table's columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tuple<'a> {
    /// Checked by [`Tuple::read`] to hold exactly `count` cells.
    bytes: &'a [u8],
    count: u16,
}

/// One value of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cell<'a> {
    /// Null.
    Null,
    /// Large and as it was before; its value is not in the log.
    Unchanged,
    /// In text form.
    Text(&'a [u8]),
    /// In binary form, see [`crate::binary`].
    Binary(&'a [u8]),
}

/// The cells of a row.
#[derive(Clone, Debug)]
pub(crate) struct Cells<'a> {
    cursor: Cursor<'a>,
    left: u16,
}

impl<'a> Tuple<'a> {
    /// How many cells there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// The cells in order.
    pub(crate) fn cells(&self) -> Cells<'a> {
        Cells { cursor: Cursor::new(self.bytes), left: self.count }
    }

    pub(super) fn read(cursor: &mut Cursor<'a>) -> Result<Self> {
        let count = cursor.u16("count of cells")?;
        let bytes = cursor.rest();
        for _ in 0..count {
            Cell::read(cursor)?;
        }
        Ok(Self { bytes: &bytes[..bytes.len() - cursor.rest().len()], count })
    }
}

impl<'a> Cell<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self> {
        Ok(match cursor.u8("cell")? {
            b'n' => Self::Null,
            b'u' => Self::Unchanged,
            kind @ (b't' | b'b') => {
                let length = cursor.u32("length of a cell")?;
                let bytes = cursor.bytes(length as usize, "cell")?;
                if kind == b't' { Self::Text(bytes) } else { Self::Binary(bytes) }
            }
            _ => return Err(cursor.malformed("a cell of an unknown kind")),
        })
    }
}

impl<'a> Iterator for Cells<'a> {
    type Item = Cell<'a>;

    fn next(&mut self) -> Option<Cell<'a>> {
        self.left = self.left.checked_sub(1)?;
        Cell::read(&mut self.cursor).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for Cells<'_> {}

impl FusedIterator for Cells<'_> {}

/// The columns of a relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Columns<'a> {
    /// Checked by [`Columns::read`] to hold exactly `count` columns.
    bytes: &'a [u8],
    count: u16,
}

/// One column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Column<'a> {
    /// Whether it belongs to the replica identity; with a full one every column does.
    pub(crate) key: bool,
    /// Its name.
    pub(crate) name: &'a str,
    /// The number of its type.
    pub(crate) type_oid: u32,
    /// The modifier of its type, such as a length; -1 for none.
    pub(crate) modifier: i32,
}

impl<'a> Columns<'a> {
    /// How many columns there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// The columns in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Column<'a>> + use<'a> {
        let mut cursor = Cursor::new(self.bytes);
        (0..self.count).map_while(move |_| Column::read(&mut cursor).ok())
    }

    pub(super) fn read(cursor: &mut Cursor<'a>) -> Result<Self> {
        let count = cursor.u16("count of columns")?;
        let bytes = cursor.rest();
        for _ in 0..count {
            Column::read(cursor)?;
        }
        Ok(Self { bytes: &bytes[..bytes.len() - cursor.rest().len()], count })
    }
}

impl<'a> Column<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self> {
        Ok(Self {
            key: cursor.u8("flags of a column")? & 1 != 0,
            name: cursor.text("name of a column")?,
            type_oid: cursor.u32("type of a column")?,
            modifier: cursor.i32("modifier of a column")?,
        })
    }
}
