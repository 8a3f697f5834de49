//! Errors that travel: to another process, or to everybody who waited for the same thing.

use std::borrow::Cow;

use super::{Code, Error, Verdict, code};

/// An error as it is written. Its causes are one text.
#[derive(serde::Serialize, serde::Deserialize)]
struct Record<'a> {
    code: u16,
    verdict: Verdict,
    message: Cow<'a, str>,
    context: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    hint: Option<Cow<'a, str>>,
    cause: Option<String>,
}

impl Error {
    fn causes(&self) -> Option<String> {
        let first = std::error::Error::source(self)?;
        let all = std::iter::successors(Some(first), |error| error.source());
        Some(all.map(ToString::to_string).collect::<Vec<_>>().join(": "))
    }
}

/// The copy says the same; of its causes only the text is left.
impl Clone for Error {
    fn clone(&self) -> Self {
        let mut copy = Self::new(self.code(), self.0.message.clone()).verdict_is(self.verdict());
        copy.0.context.clone_from(&self.0.context);
        copy.0.hint.clone_from(&self.0.hint);
        copy.0.source = self.causes().map(Into::into);
        copy
    }
}

impl serde::Serialize for Error {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let context =
            self.context().iter().map(|(name, value)| (Cow::Borrowed(&**name), Cow::Borrowed(&**value)));
        let record = Record {
            code: self.code().number(),
            verdict: self.verdict(),
            message: Cow::Borrowed(self.message()),
            context: context.collect(),
            hint: self.hint_text().map(Cow::Borrowed),
            cause: self.causes(),
        };
        record.serialize(serializer)
    }
}

impl<'de> serde::Deserialize<'de> for Error {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let record = Record::deserialize(deserializer)?;
        // A newer program may know more codes; what it says is kept all the same.
        let code =
            Code::all().iter().copied().find(|code| code.number() == record.code).unwrap_or(code::INTERNAL);
        let mut error = Self::new(code, record.message.into_owned()).verdict_is(record.verdict);
        for (name, value) in record.context {
            error = error.with(name.into_owned(), value);
        }
        error.0.hint = record.hint.map(|hint| Cow::Owned(hint.into_owned()));
        error.0.source = record.cause.map(Into::into);
        Ok(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_with_its_causes_as_text() {
        let error = Error::new(code::VALUE_UNFIT, "it is too long")
            .with("table", "public.t")
            .with("key", "id=3")
            .because(Error::new(code::INTERNAL, "outer").because(std::io::Error::other("inner")))
            .hint("make it shorter")
            .verdict_is(Verdict::Unknown);
        let read: Error = serde_json::from_str(&serde_json::to_string(&error).unwrap()).unwrap();
        for copy in [read, error.clone()] {
            assert_eq!(copy.line(), error.line());
            assert_eq!((copy.verdict(), copy.hint_text()), (Verdict::Unknown, Some("make it shorter")));
            assert_eq!(copy.causes().unwrap(), "TG0099 internal: outer: inner");
        }
    }
}
