//! The rows of the list and how they are printed.

use std::fmt::Write;

use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};
use serde::Serialize;

/// Width of the text, in columns.
const COLUMNS: u16 = 80;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    /// Nothing stands in the way.
    Pass,
    /// Machines run, but something is slower or not there.
    Warn,
    /// No machine runs.
    Fail,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }

    /// The ANSI colour of its name.
    fn colour(self) -> u8 {
        match self {
            Self::Pass => 32,
            Self::Warn => 33,
            Self::Fail => 31,
        }
    }
}

/// One line of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Row {
    /// What was looked at: a stable name for machines.
    pub(super) check: &'static str,
    pub(super) status: Status,
    /// What was found.
    pub(super) detail: String,
    /// How to mend it; there for every row that did not pass.
    pub(super) mend: Option<String>,
}

impl Row {
    pub(super) fn pass(check: &'static str, detail: impl Into<String>) -> Self {
        Self {
            check,
            status: Status::Pass,
            detail: detail.into(),
            mend: None,
        }
    }

    pub(super) fn warn(
        check: &'static str,
        detail: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            status: Status::Warn,
            mend: Some(mend.into()),
            ..Self::pass(check, detail)
        }
    }

    pub(super) fn fail(
        check: &'static str,
        detail: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            status: Status::Fail,
            ..Self::warn(check, detail, mend)
        }
    }
}

/// The whole list.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct Report {
    rows: Vec<Row>,
}

impl Report {
    pub(super) fn new(rows: Vec<Row>) -> Self {
        Self { rows }
    }

    /// Whether no machine can run.
    pub(super) fn has_failure(&self) -> bool {
        self.count(Status::Fail) > 0
    }

    fn count(&self, status: Status) -> usize {
        self.rows.iter().filter(|row| row.status == status).count()
    }

    /// The list for people, in 80 columns, with a verdict at its end.
    pub(super) fn text(&self, colour: bool) -> String {
        let mut table = Table::new();
        table
            .load_preset(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(COLUMNS);
        for row in &self.rows {
            let mut detail = row.detail.clone();
            if let Some(mend) = &row.mend {
                detail.push_str("\nmend: ");
                detail.push_str(mend);
            }
            table.add_row([row.status.name(), row.check, detail.as_str()]);
        }
        for (index, width) in [(0, 6), (1, 18)] {
            if let Some(column) = table.column_mut(index) {
                column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(width)));
            }
        }
        let mut text = String::new();
        for line in table.lines() {
            let line = line.trim_end();
            let line = line.strip_prefix(' ').unwrap_or(line);
            text.push_str(&painted(line, colour));
            text.push('\n');
        }
        let warnings = match self.count(Status::Warn) {
            0 => String::new(),
            1 => " (1 warning)".to_owned(),
            count => format!(" ({count} warnings)"),
        };
        let verdict = if self.has_failure() {
            "This host cannot run machines until what failed is mended"
        } else {
            "This host can run machines"
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\n{verdict}{warnings}.");
        text
    }
}

/// An I/O error without the number that the standard library puts behind it.
pub(super) fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" (os error ") {
        Some((words, _)) => words.to_lowercase(),
        None => text,
    }
}

/// The line with the status at its start in colour.
fn painted(line: &str, colour: bool) -> String {
    let status = [Status::Pass, Status::Warn, Status::Fail]
        .into_iter()
        .find(|status| line.starts_with(status.name()));
    match status {
        Some(status) if colour => {
            let name = status.name();
            format!(
                "\x1b[{}m{name}\x1b[0m{}",
                status.colour(),
                &line[name.len()..]
            )
        }
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report::new(vec![
            Row::pass("kvm", "fine"),
            Row::warn("tap", "a word ".repeat(30), "mend ".repeat(30)),
            Row::fail("guest code", "it fails", "another host"),
        ])
    }

    #[test]
    fn every_line_fits_80_columns() {
        let text = report().text(false);
        assert!(text.lines().count() > 6, "{text}");
        for line in text.lines() {
            assert!(line.chars().count() <= usize::from(COLUMNS), "{line:?}");
        }
    }

    #[test]
    fn status_stands_at_the_start_of_its_line_and_the_mend_below() {
        let text = report().text(false);
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[0].starts_with("pass") && lines[0].ends_with("fine"),
            "{text}"
        );
        let fail = lines
            .iter()
            .position(|line| line.starts_with("fail"))
            .unwrap();
        assert!(
            lines[fail + 1]
                .trim_start()
                .starts_with("mend: another host"),
            "{text}"
        );
        assert!(text.contains("cannot run"), "{text}");
    }

    #[test]
    fn colour_is_only_there_when_asked_for() {
        assert!(!report().text(false).contains('\x1b'));
        let coloured = report().text(true);
        assert!(coloured.contains("\x1b[31mfail\x1b[0m"), "{coloured:?}");
        let plain = coloured
            .replace("\x1b[31m", "")
            .replace("\x1b[32m", "")
            .replace("\x1b[33m", "")
            .replace("\x1b[0m", "");
        assert_eq!(plain, report().text(false));
    }

    #[test]
    fn json_is_an_array_of_rows() {
        let json = serde_json::to_value(Report::new(vec![
            Row::pass("a", "b"),
            Row::fail("c", "d", "e"),
        ]))
        .unwrap();
        let expected = serde_json::json!([
            {"check": "a", "status": "pass", "detail": "b", "mend": null},
            {"check": "c", "status": "fail", "detail": "d", "mend": "e"},
        ]);
        assert_eq!(json, expected);
    }

    #[test]
    fn errors_are_told_in_words() {
        let error = std::io::Error::from_raw_os_error(libc::ENOENT);
        assert_eq!(plain(&error), "no such file or directory");
    }

    #[test]
    fn only_a_failure_is_a_failure() {
        assert!(report().has_failure());
        assert!(!Report::new(vec![Row::pass("a", "b"), Row::warn("c", "d", "e")]).has_failure());
    }
}
