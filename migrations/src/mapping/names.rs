//! The names that an expression uses.

use std::collections::BTreeSet;

use cel::common::ast::{EntryExpr, Expr, IdedExpr};

/// The names of types in CEL. That of a timestamp is `google.protobuf.Timestamp`.
const TYPES: &[&str] =
    &["bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type", "type", "google"];

/// What an expression looks at.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Its variables, without the names of types (`type(row.x) == int`) and without those that it makes itself: `t` in `row.tags.exists(t, t == 'x')`.
    pub(super) variables: BTreeSet<String>,
    /// The fields of `row` that it names.
    pub(super) columns: BTreeSet<String>,
    /// The functions that it calls, without operators.
    pub(super) functions: BTreeSet<String>,
}

impl Names {
    pub(super) fn of(expression: &IdedExpr) -> Self {
        let mut names = Self::default();
        names.walk(expression, &mut Vec::new());
        names
    }

    fn walk<'e>(&mut self, expression: &'e IdedExpr, own: &mut Vec<&'e str>) {
        match &expression.expr {
            Expr::Ident(name) => {
                if !own.contains(&name.as_str()) && !TYPES.contains(&name.as_str()) {
                    self.variables.insert(name.clone());
                }
            }
            Expr::Select(select) => {
                let is_row = matches!(&select.operand.expr, Expr::Ident(name) if name == "row");
                if is_row && !select.test && !own.contains(&"row") {
                    self.columns.insert(select.field.clone());
                }
                self.walk(&select.operand, own);
            }
            Expr::Call(call) => {
                if call.func_name.starts_with(char::is_alphabetic) {
                    self.functions.insert(call.func_name.clone());
                }
                call.target.iter().for_each(|target| self.walk(target, own));
                call.args.iter().for_each(|argument| self.walk(argument, own));
            }
            Expr::List(list) => list.elements.iter().for_each(|element| self.walk(element, own)),
            Expr::Comprehension(each) => {
                self.walk(&each.iter_range, own);
                self.walk(&each.accu_init, own);
                let outside = own.len();
                own.extend([each.iter_var.as_str(), each.accu_var.as_str()]);
                own.extend(each.iter_var2.as_deref());
                for part in [&each.loop_cond, &each.loop_step, &each.result] {
                    self.walk(part, own);
                }
                own.truncate(outside);
            }
            Expr::Map(map) => map.entries.iter().for_each(|entry| self.walk_entry(&entry.expr, own)),
            Expr::Struct(made) => made.entries.iter().for_each(|entry| self.walk_entry(&entry.expr, own)),
            Expr::Unspecified | Expr::Literal(_) => {}
        }
    }

    fn walk_entry<'e>(&mut self, entry: &'e EntryExpr, own: &mut Vec<&'e str>) {
        match entry {
            EntryExpr::MapEntry(entry) => {
                self.walk(&entry.key, own);
                self.walk(&entry.value, own);
            }
            EntryExpr::StructField(field) => self.walk(&field.value, own),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_wherever_they_stand() {
        for (text, variables, columns) in [
            ("row.a + row.b.c", &["row"][..], &["a", "b"][..]),
            ("has(row.a) ? document['x'] : other", &["document", "other", "row"], &[]),
            ("row.tags.exists(t, t == row.tag)", &["row"], &["tag", "tags"]),
            ("row.tags.map(t, t + u)", &["row", "u"], &["tags"]),
            ("[1].exists(row, row.a == 1)", &[], &[]),
            ("type(row.a) in [int, google.protobuf.Timestamp]", &["row"], &["a"]),
            ("{'k': row.a, 'l': [row.b]}", &["row"], &["a", "b"]),
        ] {
            let program = cel::Program::compile(text).unwrap();
            let names = Names::of(program.expression());
            assert!(names.variables.iter().eq(variables), "{text}: {names:?}");
            assert!(names.columns.iter().eq(columns), "{text}: {names:?}");
        }
    }
}
