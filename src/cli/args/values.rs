//! Parsers of the values of settings. Their errors name the flag, its variable, the value and the expected values.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, Command};

use crate::app::settings::SettingError;
use crate::model::dns_name::is_subdomain;
use crate::model::text::sanitize;

/// A value that is not accepted.
pub(super) struct Refused {
    /// The wrong item of a list; `None` for the whole value.
    item: Option<String>,
    expected: &'static str,
}

impl From<&'static str> for Refused {
    fn from(expected: &'static str) -> Self {
        Self {
            item: None,
            expected,
        }
    }
}

pub(super) type Parsed<T> = Result<T, Refused>;

/// A parser of values for `clap`.
#[derive(Clone)]
pub(super) struct Parser<T> {
    parse: fn(&str) -> Parsed<T>,
    is_list: bool,
}

/// The parser of a single value. `parse` receives it without surrounding blanks.
pub(super) fn single<T>(parse: fn(&str) -> Parsed<T>) -> Parser<T> {
    Parser {
        parse,
        is_list: false,
    }
}

/// The parser of a comma-separated list. An empty list is accepted from the environment only.
pub(super) fn list<T>(parse: fn(&str) -> Parsed<T>) -> Parser<T> {
    Parser {
        parse,
        is_list: true,
    }
}

impl<T: Clone + Send + Sync + 'static> TypedValueParser for Parser<T> {
    type Value = T;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<T, clap::Error> {
        self.parse_ref_(command, arg, value, ValueSource::CommandLine)
    }

    fn parse_ref_(
        &self,
        _: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
        source: ValueSource,
    ) -> Result<T, clap::Error> {
        let flag = arg.and_then(Arg::get_long).unwrap_or_default();
        let refuse = |value: &str, expected: &str| {
            let error = SettingError::new(flag, value, expected).to_string();
            clap::Error::raw(ErrorKind::ValueValidation, sanitize(&error) + "\n")
        };
        let Some(text) = value.to_str() else {
            return Err(refuse("(not shown)", "expected valid UTF-8"));
        };
        if source == ValueSource::CommandLine {
            if text.trim().is_empty() {
                let expected = "expected a value; omit the flag to use the default";
                return Err(refuse(text, expected));
            }
            if self.is_list && items(text).next().is_none() {
                return Err(refuse(
                    text,
                    "expected at least one item, separated by commas",
                ));
            }
        }
        (self.parse)(text.trim()).map_err(|refused| {
            let shown = refused.item.as_deref().unwrap_or(text);
            refuse(shown, refused.expected)
        })
    }
}

/// The non-empty items of a comma-separated list, without surrounding blanks.
pub(super) fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|i| !i.is_empty())
}

/// A list as the value of one flag; a plain `Vec` would make `clap` expect the flag several times.
#[derive(Debug, Clone)]
pub(crate) struct List<T>(pub(crate) Vec<T>);

/// A list of values that `parse` accepts.
pub(super) fn all<T>(
    text: &str,
    expected: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Parsed<List<T>> {
    let item = |item: &str| {
        parse(item).ok_or_else(|| Refused {
            item: Some(item.to_owned()),
            expected,
        })
    };
    items(text).map(item).collect::<Result<_, _>>().map(List)
}

pub(super) fn text(text: &str) -> Parsed<String> {
    Ok(text.to_owned())
}

pub(super) fn switch(text: &str) -> Parsed<bool> {
    text.parse().map_err(|_| "expected true or false".into())
}

pub(super) fn path(text: &str) -> Parsed<PathBuf> {
    match text {
        "" => Err("expected a path".into()),
        text if text.contains('\0') => Err("expected a path".into()),
        text => Ok(PathBuf::from(text)),
    }
}

pub(super) fn paths(text: &str) -> Parsed<List<PathBuf>> {
    all(text, "expected paths separated by commas", |item| {
        path(item).ok()
    })
}

pub(super) fn time(text: &str) -> Parsed<Duration> {
    humantime::parse_duration(text).map_err(|_| "expected a time, such as 90s, 5m or 0s".into())
}

pub(super) fn time_above_zero(text: &str) -> Parsed<Duration> {
    let time = humantime::parse_duration(text).ok();
    time.filter(|time| !time.is_zero())
        .ok_or_else(|| "expected a time above zero, such as 90s, 15m or 1h30m".into())
}

/// A whole number from 1 to `max`, in digits alone.
pub(super) fn whole(text: &str, max: u64) -> Option<u64> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let number = text.parse().ok().filter(|n| (1..=max).contains(n));
    number.filter(|_| digits)
}

/// Returns whether Kubernetes accepts the text as the key of a taint or a label.
pub(super) fn is_key(text: &str) -> bool {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let bytes = name.as_bytes();
    bytes.len() <= 63
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && prefix.is_none_or(is_subdomain)
}
