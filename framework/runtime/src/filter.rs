//! Says which messages are meant, by what is in them.

use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use cel::{Context, Env, ExecutionError, Program};
use tidegate_core::error::code;
use tidegate_core::{Error, Message, Result};

/// What an expression sees.
const MESSAGE: &str = "message";

/// An expression in [CEL](https://cel.dev) that is true of the messages that are meant. It sees `message`, with the fields `id`,
/// `source`, `kind`, `subject`, `tenant`, `correlation_id` (texts, or null), `headers` (a map of texts) and `data`: the body, if it is
/// JSON, else null.
///
/// ```
/// use tidegate_core::Message;
/// use tidegate_runtime::Filter;
///
/// let large = Filter::new("message.kind == 'order.placed.v1' && message.data.total > 1000")?;
/// let placed = Message::with_id("1", "/shop", "order.placed.v1").with_data("application/json", r#"{"total": 1200}"#);
/// assert!(large.takes(&placed)?);
/// # Ok::<(), tidegate_core::Error>(())
/// ```
pub struct Filter {
    text: String,
    program: Program,
    environment: Arc<Env>,
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Filter").field(&self.text).finish()
    }
}

impl Filter {
    /// Compiles an expression.
    ///
    /// # Errors
    /// `config-invalid` if it is none, or sees something else than `message`.
    pub fn new(text: &str) -> Result<Self> {
        let invalid = |what: String| Error::new(code::CONFIG_INVALID, what);
        let program =
            Program::compile(text).map_err(|e| invalid(format!("{text:?} is no expression")).because(e))?;
        let filter = Self { text: text.to_owned(), program, environment: Arc::new(Env::stdlib()) };
        // What it says of an empty message tells whether it looks at something else, as far as it looks.
        match filter.run(&Message::with_id("", "", "")) {
            Ok(Err(ExecutionError::UndeclaredReference(other))) => Err(invalid(format!(
                "{text:?} sees {other:?}, and there is only {MESSAGE:?}"
            ))
            .hint(
                "fields of a message are message.kind, message.subject, message.headers.x, message.data.y",
            )),
            _ => Ok(filter),
        }
    }

    /// Whether it is true of a message.
    ///
    /// # Errors
    /// `transform-failed` if it cannot be said, as when a field is not there: `has(message.data.total)` asks for that.
    pub fn takes(&self, message: &Message) -> Result<bool> {
        let failed = |why: String| {
            let what = format!("whether {:?} is true of a message cannot be said: {why}", self.text);
            Error::new(code::TRANSFORM_FAILED, what)
        };
        match self.run(message) {
            Ok(Ok(cel::Value::Bool(is_true))) => Ok(is_true),
            Ok(Ok(other)) => Err(failed(format!("it is {}, and neither true nor false", other.type_of()))),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed("it panicked".to_owned())),
        }
    }

    /// What somebody sends must not end whoever looks at it.
    fn run(&self, message: &Message) -> std::thread::Result<Result<cel::Value, ExecutionError>> {
        let mut context = Context::with_env(Arc::clone(&self.environment));
        context.add_variable_from_value(MESSAGE, seen(message));
        catch_unwind(AssertUnwindSafe(|| self.program.execute(&context)))
    }
}

fn seen(message: &Message) -> cel::Value {
    let text = |text: &Option<Arc<str>>| text.as_deref().map_or(cel::Value::Null, cel::Value::from);
    let headers: HashMap<String, cel::Value> =
        message.headers.iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    let data = serde_json::from_slice(&message.data).map_or(cel::Value::Null, json);
    HashMap::from([
        ("id", (&*message.id).into()),
        ("source", (&*message.source).into()),
        ("kind", (&*message.kind).into()),
        ("subject", text(&message.subject)),
        ("tenant", text(&message.tenant)),
        ("correlation_id", text(&message.correlation_id)),
        ("headers", headers.into()),
        ("data", data),
    ])
    .into()
}

/// A whole number is an `int` where it fits, so that it can be compared with one that is written in an expression.
fn json(value: serde_json::Value) -> cel::Value {
    match value {
        serde_json::Value::Null => cel::Value::Null,
        serde_json::Value::Bool(value) => value.into(),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => number.into(),
            (None, Some(number)) => cel::Value::UInt(number),
            (None, None) => number.as_f64().map_or(cel::Value::Null, cel::Value::Float),
        },
        serde_json::Value::String(text) => text.into(),
        serde_json::Value::Array(items) => items.into_iter().map(json).collect::<Vec<_>>().into(),
        serde_json::Value::Object(fields) => {
            fields.into_iter().map(|(name, value)| (name, json(value))).collect::<HashMap<_, _>>().into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_sees_attributes_headers_and_the_body() {
        let message = Message::with_id("1", "/shop", "order.placed.v1")
            .with_subject("o-1")
            .with_header("region", "eu")
            .unwrap()
            .with_data("application/json", r#"{"total": 12, "lines": [{"sku": "a"}], "rate": 0.5}"#);
        for (text, is_true) in [
            ("message.kind == 'order.placed.v1' && message.subject == 'o-1'", true),
            ("message.headers.region in ['eu', 'us'] && message.source.startsWith('/shop')", true),
            ("message.data.total >= 12 && message.data.rate < 1.0", true),
            ("message.data.lines.exists(line, line.sku == 'b')", false),
            ("message.tenant == null && !has(message.headers.x)", true),
        ] {
            assert_eq!(Filter::new(text).unwrap().takes(&message).unwrap(), is_true, "{text}");
        }
        let plain = Message::with_id("1", "/shop", "t").with_data("text/plain", "hello");
        assert!(Filter::new("message.data == null").unwrap().takes(&plain).unwrap());
    }

    #[test]
    fn what_cannot_be_said_is_an_error_and_what_is_no_expression_is_refused() {
        let message = Message::with_id("1", "/shop", "t");
        for text in ["message.data.total > 1", "message.kind", "message.kind > 1"] {
            let error = Filter::new(text).unwrap().takes(&message).unwrap_err();
            assert_eq!(error.code(), code::TRANSFORM_FAILED, "{text}");
            assert!(error.to_string().contains(text), "{error}");
        }
        for (text, words) in [("message.", "is no expression"), ("order.total > 1", "sees \"order\"")] {
            let error = Filter::new(text).unwrap_err();
            assert!(error.code() == code::CONFIG_INVALID && error.to_string().contains(words), "{error}");
        }
    }
}
