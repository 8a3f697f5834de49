//! A program of one's own: everything that `tidegate` does, with a [`Transform`] in Rust. Orders and their lines, two
//! tables of the source, become one document an order.

#![allow(clippy::print_stdout, reason = "a command line program talks on stdout")]

mod shop;

use std::process::ExitCode;

use tidegate::core::TableName;
use tidegate::core::error::code;
use tidegate::prelude::*;
use tidegate_migrations::Registry;

#[derive(Debug)]
struct FoldOrders;

impl Transform for FoldOrders {
    fn make(&self, table: &Table) -> Result<Made> {
        match table.name.name.as_str() {
            "orders" => {}
            "lines" => return Ok(Made::LeftOut),
            _ => return Ok(Made::AsIs),
        }
        let own = table.columns.iter().enumerate();
        let own = own.map(|(at, column)| MadeColumn { column: column.clone(), carries: Some(at) });
        let lines = MadeColumn { column: Column::new("lines", Type::Json), carries: None };
        Ok(Made::Into(Recipe {
            columns: own.chain([lines]).collect(),
            joins: vec![Join {
                table: TableName::new(table.name.schema.clone(), "lines"),
                on: vec!["order_id".to_owned()],
            }],
            filters: false,
        }))
    }

    fn row(&self, _: &Record<'_>, joined: &[Vec<Record<'_>>], out: &mut Vec<Value<'static>>) -> Result<bool> {
        let mut lines = Vec::new();
        for line in joined.iter().flatten() {
            let Value::Int(number) = line.value("line_no")? else {
                return Err(Error::new(code::TRANSFORM_FAILED, "a line without a number"));
            };
            let text = |column| line.value(column).map(|value| value.to_string());
            lines.push((number, serde_json::json!({"item": text("item")?, "price": text("price")?})));
        }
        lines.sort_by_key(|(number, _)| *number);
        let lines = lines.into_iter().map(|(_, line)| line).collect();
        out.push(Value::Json(serde_json::Value::Array(lines).to_string().into()));
        Ok(true)
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["make-shop", file] => shop::make(file),
        ["show", file] => shop::show(file),
        _ => {
            let mut registry = Registry::standard();
            registry.transform(FoldOrders);
            tidegate_migrations::run(registry)
        }
    }
}
