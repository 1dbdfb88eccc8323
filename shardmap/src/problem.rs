//! What is wrong with a map, or worth knowing about it: where it is, what was seen, what was expected.

use crate::point::Point;
use std::fmt;

/// One fault of a map or of a file it is made from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Problem {
    /// The file it is in; empty: the map file itself, whose name only the caller knows.
    pub file: String,
    /// The line in that file, from 1, where one is known.
    pub line: Option<usize>,
    /// The fence, by name or number.
    pub feature: Option<String>,
    /// Where on the globe.
    pub place: Option<Point>,
    /// What was seen and what was expected.
    pub what: String,
}

/// Something that is no fault but that whoever draws the map should know.
pub type Note = Problem;

impl Problem {
    /// A problem of no particular place.
    pub fn new(what: impl Into<String>) -> Problem {
        Problem { what: what.into(), ..Problem::default() }
    }

    /// The same at a line.
    pub fn at_line(self, line: usize) -> Problem {
        Problem { line: Some(line), ..self }
    }

    /// The same of a fence.
    pub fn of(self, feature: impl Into<String>) -> Problem {
        Problem { feature: Some(feature.into()), ..self }
    }

    /// The same at a place.
    pub fn at(self, place: Point) -> Problem {
        Problem { place: Some(place), ..self }
    }

    /// The same, in `file` unless a file is named already.
    pub fn in_file(self, file: &str) -> Problem {
        if self.file.is_empty() { Problem { file: file.to_owned(), ..self } } else { self }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.file.is_empty() { "map" } else { &self.file })?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(feature) = &self.feature {
            write!(f, ": fence \"{feature}\"")?;
        }
        if let Some(place) = self.place {
            write!(f, " at {place}")?;
        }
        write!(f, ": {}", self.what)
    }
}

impl std::error::Error for Problem {}
