use proptest::prelude::*;
use tidegate_core::error::code;

use super::*;

/// Messages are written as in the protocol's description: numbers big-endian, texts ended by zero.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn of(kind: u8) -> Self {
        Self(vec![kind])
    }

    fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn text(mut self, value: &str) -> Self {
        self.0.extend(value.as_bytes());
        self.u8(0)
    }

    /// `(1, NULL, unchanged, binary 0xFF)`.
    fn row(self) -> Self {
        let mut row = self.u16(4).u8(b't').u32(1).u8(b'1').u8(b'n').u8(b'u').u8(b'b').u32(1);
        row.0.push(0xFF);
        row
    }
}

const ROW: [Cell<'_>; 4] = [Cell::Text(b"1"), Cell::Null, Cell::Unchanged, Cell::Binary(&[0xFF])];

fn parse(bytes: &[u8]) -> Message<'_> {
    Parser::new().parse(bytes).unwrap()
}

fn relation_message() -> Vec<u8> {
    Bytes::of(b'R')
        .u32(9)
        .text("public")
        .text("orders")
        .u8(b'i')
        .u16(2)
        .u8(1)
        .text("id")
        .u32(20)
        .u32(u32::MAX)
        .u8(0)
        .text("name")
        .u32(1043)
        .u32(44)
        .0
}

#[test]
fn transactions_are_read() {
    assert_eq!(
        parse(&Bytes::of(b'B').u64(1).u64(2).u32(3).0),
        Message::Begin { final_lsn: Lsn(1), committed_at: 2, xid: 3 }
    );
    assert_eq!(
        parse(&Bytes::of(b'C').u8(0).u64(1).u64(2).u64(3).0),
        Message::Commit { lsn: Lsn(1), end_lsn: Lsn(2), committed_at: 3 }
    );
    assert_eq!(parse(&Bytes::of(b'O').u64(1).text("x").0), Message::Origin { lsn: Lsn(1), name: "x" });
    assert_eq!(parse(&Bytes::of(b'S').u32(1).u8(1).0), Message::StreamStart { xid: 1, first: true });
    assert_eq!(parse(b"E"), Message::StreamStop);
    assert_eq!(
        parse(&Bytes::of(b'c').u32(9).u8(0).u64(1).u64(2).u64(3).0),
        Message::StreamCommit { xid: 9, lsn: Lsn(1), end_lsn: Lsn(2), committed_at: 3 }
    );
    assert_eq!(parse(&Bytes::of(b'A').u32(1).u32(2).0), Message::StreamAbort { xid: 1, subxid: 2 });
}

#[test]
fn tables_are_read() {
    let bytes = relation_message();
    let Message::Relation(relation) = parse(&bytes) else { panic!("not a relation") };
    assert_eq!((relation.oid, relation.schema, relation.name), (9, "public", "orders"));
    assert_eq!(relation.identity, Identity::Index);
    assert_eq!(
        relation.columns.iter().collect::<Vec<_>>(),
        [
            tuple::Column { key: true, name: "id", type_oid: 20, modifier: -1 },
            tuple::Column { key: false, name: "name", type_oid: 1043, modifier: 44 },
        ]
    );
    assert_eq!(
        parse(&Bytes::of(b'Y').u32(7).text("").text("mood").0),
        Message::Type { xid: None, oid: 7, schema: "pg_catalog", name: "mood" }
    );
}

#[test]
fn changes_are_read() {
    let bytes = Bytes::of(b'I').u32(9).u8(b'N').row().0;
    let Message::Insert { xid: None, relation: 9, new } = parse(&bytes) else { panic!("not an insert") };
    assert_eq!(new.cells().collect::<Vec<_>>(), ROW);
    assert_eq!((new.len(), new.cells().len()), (4, 4));

    let bytes = Bytes::of(b'U').u32(9).u8(b'N').row().0;
    assert!(matches!(parse(&bytes), Message::Update { old: None, .. }));
    for (kind, full) in [(b'K', false), (b'O', true)] {
        let bytes = Bytes::of(b'U').u32(9).u8(kind).row().u8(b'N').row().0;
        let Message::Update { old: Some(old), new, .. } = parse(&bytes) else { panic!("not an update") };
        assert_eq!(matches!(old, Old::Full(_)), full);
        assert_eq!(old.tuple().cells().collect::<Vec<_>>(), ROW);
        assert_eq!(new.cells().collect::<Vec<_>>(), ROW);

        let bytes = Bytes::of(b'D').u32(9).u8(kind).row().0;
        let Message::Delete { relation: 9, old, .. } = parse(&bytes) else { panic!("not a delete") };
        assert_eq!(matches!(old, Old::Full(_)), full);
    }

    let bytes = Bytes::of(b'T').u32(2).u8(2).u32(9).u32(10).0;
    let Message::Truncate { cascade: false, restart_identity: true, relations, .. } = parse(&bytes) else {
        panic!("not a truncate")
    };
    assert_eq!(relations.iter().collect::<Vec<_>>(), [9, 10]);

    let mut bytes = Bytes::of(b'M').u8(1).u64(5).text("tidegate").u32(2).0;
    bytes.extend(b"hi");
    assert_eq!(
        parse(&bytes),
        Message::Emitted { xid: None, transactional: true, lsn: Lsn(5), prefix: "tidegate", content: b"hi" }
    );
}

/// Inside a streamed piece, and only there, each change carries its transaction.
#[test]
fn streamed_changes_carry_their_transaction() {
    let mut parser = Parser::new();
    parser.parse(&Bytes::of(b'S').u32(77).u8(1).0).unwrap();
    let bytes = Bytes::of(b'I').u32(78).u32(9).u8(b'N').row().0;
    assert!(matches!(parser.parse(&bytes).unwrap(), Message::Insert { xid: Some(78), relation: 9, .. }));
    let mut bytes = relation_message();
    bytes.splice(1..1, 78_u32.to_be_bytes());
    assert!(matches!(
        parser.parse(&bytes).unwrap(),
        Message::Relation(Relation { xid: Some(78), oid: 9, .. })
    ));
    let bytes = Bytes::of(b'M').u32(0).u8(0).u64(5).text("p").u32(0).0;
    assert!(matches!(
        parser.parse(&bytes).unwrap(),
        Message::Emitted { xid: None, transactional: false, .. }
    ));
    parser.parse(b"E").unwrap();
    let bytes = Bytes::of(b'I').u32(9).u8(b'N').row().0;
    assert!(matches!(parser.parse(&bytes).unwrap(), Message::Insert { xid: None, relation: 9, .. }));
}

#[test]
fn what_is_malformed_is_named_with_its_offset() {
    for (bytes, offset) in [
        (vec![], "0"),
        (b"?".to_vec(), "1"),
        (b"B1234".to_vec(), "1"),
        (Bytes::of(b'I').u32(9).u8(b'X').row().0, "6"),
        (Bytes::of(b'I').u32(9).u8(b'N').u16(1).u8(b'?').0, "9"),
        (Bytes::of(b'I').u32(9).u8(b'N').u16(1).u8(b't').u32(u32::MAX).0, "13"),
        (Bytes::of(b'T').u32(u32::MAX).u8(0).u32(1).0, "6"),
        (Bytes::of(b'O').u64(1).u8(0xFF).u8(0).0, "9"),
        (b"E1".to_vec(), "1"),
    ] {
        let error = Parser::new().parse(&bytes).unwrap_err();
        assert_eq!(error.code(), code::STREAM_MALFORMED);
        let seen =
            error.context().iter().find(|(name, _)| *name == "offset").map(|(_, value)| value.as_str());
        assert_eq!(seen, Some(offset), "{error:?}");
    }
}

fn walk(message: Message<'_>) {
    match message {
        Message::Relation(relation) => assert_eq!(relation.columns.iter().count(), relation.columns.len()),
        Message::Insert { new, .. } => assert_eq!(new.cells().count(), new.len()),
        Message::Update { old, new, .. } => {
            assert_eq!(new.cells().count(), new.len());
            assert!(old.is_none_or(|old| old.tuple().cells().count() == old.tuple().len()));
        }
        Message::Delete { old, .. } => assert_eq!(old.tuple().cells().count(), old.tuple().len()),
        Message::Truncate { relations, .. } => assert!(relations.iter().len() < 1000),
        _ => {}
    }
}

proptest! {
    /// A known kind in front, since otherwise almost everything ends at the first byte.
    #[test]
    fn random_bytes_never_panic(
        kind in prop::sample::select(b"BCORYIUDTMSEcA".to_vec()),
        rest in prop::collection::vec(any::<u8>(), 0..200),
        in_stream: bool,
    ) {
        let mut bytes = vec![kind];
        bytes.extend(rest);
        if let Ok(message) = (Parser { in_stream }).parse(&bytes) {
            walk(message);
        }
    }

    /// Every message cut short is refused, and one with a byte changed is read or refused.
    #[test]
    fn damaged_messages_never_panic(cut in 0_usize..60, at in 0_usize..60, value: u8) {
        for whole in [
            relation_message(),
            Bytes::of(b'U').u32(9).u8(b'K').row().u8(b'N').row().0,
            Bytes::of(b'T').u32(2).u8(2).u32(9).u32(10).0,
        ] {
            if cut < whole.len() {
                prop_assert!(Parser::new().parse(&whole[..cut]).is_err());
            }
            let mut changed = whole;
            if let Some(byte) = changed.get_mut(at) {
                *byte = value;
            }
            if let Ok(message) = Parser::new().parse(&changed) {
                walk(message);
            }
        }
    }
}
